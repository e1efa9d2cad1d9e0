"""How long calls take on the device: replays of a CUDA graph between events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from airi.bench.rows import percentile

Call = Callable[[], object]

MIN_REPLAYS = 20
_MAX_REPLAYS = 200
_TARGET_S = 0.6
"""Device time that one measurement takes, once there are `MIN_REPLAYS`."""
L2_FACTOR = 4
"""Buffers in turn hold this many times the L2, so that nothing is found there from the replay before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Microseconds of one call."""

    p20: float
    p50: float
    p80: float
    n: int
    """Replays; each runs every call once."""
    how: str = "graph"

    @classmethod
    def of(cls, samples_us: Sequence[float], *, how: str = "graph") -> Timing:
        p20, p50, p80 = (percentile(samples_us, q) for q in (20, 50, 80))
        return cls(p20=p20, p50=p50, p80=p80, n=len(samples_us), how=how)


def rotations(nbytes_per_call: float, device: torch.device) -> int:
    """How many sets of buffers to go round, so that together they hold `L2_FACTOR` times the L2."""
    if device.type == "cpu":
        return 2
    l2 = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
    return max(1, min(64, -(-L2_FACTOR * int(l2) // max(1, int(nbytes_per_call)))))


def capture(calls: Sequence[Call]) -> Any:
    """A graph of the calls in order, after each ran once (which compiles what they need)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def time_calls(calls: Sequence[Call], *, repeat: int = 1, graph: bool = True) -> Timing:
    """Times the calls, which use buffers of their own, `repeat` times over in one graph; per call.

    Where there is no device they only run once, and the figures are of no use.
    """
    sequence = [*calls] * repeat
    if not torch.cuda.is_available():
        start = time.perf_counter()
        for call in calls:
            call()
        return Timing.of([(time.perf_counter() - start) * 1e6 / len(calls)], how="cpu")
    replay = capture(sequence).replay if graph else _each(sequence)
    first = _samples(replay, 3)
    count = max(MIN_REPLAYS, min(_MAX_REPLAYS, int(_TARGET_S * 1e6 / max(first[-1], 1.0))))
    samples = _samples(replay, count)
    return Timing.of([us / len(sequence) for us in samples], how="graph" if graph else "eager")


def time_in_turns(contestants: Mapping[str, Sequence[Call]], *, graph: bool = True) -> dict[str, Timing]:
    """Times several at once, replay by replay in turns, so that clocks and heat are shared."""
    if not torch.cuda.is_available():
        return {name: time_calls(calls) for name, calls in contestants.items()}
    replays, how = {}, {}
    for name, calls in contestants.items():
        replays[name], how[name] = _replay(calls) if graph else (_each(calls), "eager")
    for replay in replays.values():
        _samples(replay, 3)
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(MIN_REPLAYS):
        for name, replay in replays.items():
            # The first one hides what it takes to launch the second, which an idle device would wait for.
            found[name] += _samples(replay, 2)[1:]
    return {
        name: Timing.of([us / len(contestants[name]) for us in samples], how=how[name])
        for name, samples in found.items()
    }


def _replay(calls: Sequence[Call]) -> tuple[Callable[[], object], str]:
    """A graph of the calls, or the calls themselves where what they do cannot be captured."""
    try:
        return capture(calls).replay, "graph"
    except RuntimeError:
        torch.cuda.synchronize()
        return _each(calls), "eager"


def _each(calls: Sequence[Call]) -> Callable[[], None]:
    for call in calls:
        call()

    def run() -> None:
        for call in calls:
            call()

    return run


def _samples(replay: Callable[[], object], count: int) -> list[float]:
    """Microseconds of `count` replays, which are all queued before the first is read."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        replay()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) * 1e3 for a, b in itertools.pairwise(events)]
