"""How much of a loop's time its device was busy: unions of what a trace says that ran there.

Pure functions but for `traced`. Times are in microseconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Interval = tuple[float, float]
"""Begin and end."""
_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


def intervals_of(trace: Mapping[str, Any]) -> list[Interval]:
    """When kernels, copies and fills ran on the device, of a trace in Chrome's format."""
    return [
        (float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0.0)))
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in _ON_DEVICE
    ]


def union_us(intervals: Iterable[Interval]) -> float:
    """The time that lies in at least one interval."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Time of a loop's step in which nothing of it ran on the device."""

    wall_us: float
    """Of a step, its mean, while nobody traced."""
    busy_us: float
    """Of a step: something of it ran on the device."""
    while_traced: float
    """The device's idle share between the first and the last thing that ran while it was traced: more than there is
    without, as tracing makes gaps."""
    events: float
    """Kernels, copies and fills of a step."""

    @property
    def share(self) -> float:
        """Of a step's wall time. Below 0 the figures contradict each other."""
        return 1.0 - self.busy_us / self.wall_us


def outside_of(wall_us: Sequence[float], intervals: Sequence[Interval], steps: int) -> Outside | None:
    """From the wall times of some steps and what ran on the device in `steps` others of the same kind.

    None where the trace holds nothing of a device.
    """
    if not intervals:
        return None
    busy = union_us(intervals)
    span = max(end for _, end in intervals) - min(begin for begin, _ in intervals)
    return Outside(
        wall_us=sum(wall_us) / len(wall_us),
        busy_us=busy / steps,
        while_traced=1.0 - busy / span if span > 0 else 0.0,
        events=len(intervals) / steps,
    )


@contextmanager
def traced(*, on_device: bool) -> Iterator[list[Interval]]:
    """Collects what runs on the device meanwhile; the list is filled at the end.

    What was enqueued before has ended when it begins, what is enqueued inside when it is over: all of that is in it and
    nothing else.
    """
    from torch.profiler import ProfilerActivity, profile

    found: list[Interval] = []
    if on_device:
        torch.cuda.synchronize()
    kind = ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        yield found
        if on_device:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        found += intervals_of(json.loads(path.read_bytes()))
