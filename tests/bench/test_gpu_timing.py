"""How the GPU benches take times and whether their shapes fit a device, without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benches.gpu import speed_decode, speed_peers, speed_prefill, timing
from benches.gpu.bench import Bench
from benches.gpu.pool import Pool


class FakeCuda:
    """A device whose clock moves by what each call says it takes."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._captured: list[float] | None = None
        self.refuses_capture = False
        self.launch_ms = 0.0
        """What an idle device waits for a replay to be launched."""
        self._idle = False

    def synchronize(self) -> None:
        self._idle = True

    def call(self, ms: float) -> Any:
        """Work that takes so long when it runs, and nothing when it is captured."""

        def work() -> None:
            if self._captured is None:
                self.now_ms += ms
            elif self.refuses_capture:
                raise RuntimeError("operation not permitted when stream is capturing")
            else:
                self._captured.append(ms)

        return work

    def install(self, patch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.now_ms

            def elapsed_time(self, other: Event) -> float:
                return other.at - self.at

        class Graph:
            calls: list[float]

            def replay(self) -> None:
                device.now_ms += sum(self.calls) + device.launch_ms * device._idle
                device._idle = False

        class Stream:
            def wait_stream(self, _other: object) -> None:
                pass

        @contextlib.contextmanager
        def capturing(graph: Graph) -> Iterator[None]:
            graph.calls = device._captured = []
            try:
                yield
            finally:
                device._captured = None

        for name, value in (
            ("is_available", lambda: True),
            ("synchronize", self.synchronize),
            ("Stream", Stream),
            ("current_stream", Stream),
            ("stream", lambda _stream: contextlib.nullcontext()),
            ("CUDAGraph", Graph),
            ("graph", capturing),
            ("Event", Event),
        ):
            patch.setattr(torch.cuda, name, value)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def test_a_call_takes_its_share_of_a_replay(cuda: FakeCuda) -> None:
    found = timing.time_calls([cuda.call(1.0), cuda.call(3.0)], repeat=2)
    assert (found.p20, found.p50, found.p80) == pytest.approx((2000, 2000, 2000))
    assert found.how == "graph"
    assert timing.MIN_REPLAYS <= found.n <= 200


def test_short_calls_are_replayed_more_often(cuda: FakeCuda) -> None:
    assert timing.time_calls([cuda.call(100.0)]).n == timing.MIN_REPLAYS
    assert timing.time_calls([cuda.call(0.01)]).n == 200


def test_contestants_run_in_turns_each_over_its_own_calls(cuda: FakeCuda) -> None:
    found = timing.time_in_turns({"a": [cuda.call(1.0)], "b": [cuda.call(2.0), cuda.call(4.0)]})
    assert {name: t.p50 for name, t in found.items()} == pytest.approx({"a": 1000, "b": 3000})
    assert {t.n for t in found.values()} == {timing.MIN_REPLAYS}


def test_an_idle_device_that_waits_for_a_launch_is_not_counted(cuda: FakeCuda) -> None:
    cuda.launch_ms = 0.5
    assert timing.time_calls([cuda.call(1.0)]).p50 == pytest.approx(1000)
    found = timing.time_in_turns({"a": [cuda.call(1.0)], "b": [cuda.call(2.0)]})
    assert {name: t.p80 for name, t in found.items()} == pytest.approx({"a": 1000, "b": 2000})


def test_what_cannot_be_captured_is_timed_as_it_is_and_says_so(cuda: FakeCuda) -> None:
    cuda.refuses_capture = True
    found = timing.time_in_turns({"a": [cuda.call(2.0)]})
    assert found["a"].how == "eager"
    assert found["a"].p50 == pytest.approx(2000)


def test_small_buffers_rotate_until_they_leave_l2_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        L2_cache_size = 60 << 20

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Properties)
    device = torch.device("cuda")
    assert timing.rotations(10 << 20, device) == 24
    assert timing.rotations(1 << 30, device) == 1
    assert timing.rotations(1, device) == 64


class MetaBench(Bench):
    """As on a GPU, with an arena of which there is only the size."""

    def arena(self, most: int | None = None) -> torch.Tensor:
        return torch.empty(most or 100_000_000_000, dtype=torch.uint8, device="meta")


def blocks_of(pool: Pool, lens: tuple[int, ...]) -> int:
    return sum(-(-n // pool.layout.block_size) for n in lens)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(Pool, "fill", lambda _pool, seed: None)
    return MetaBench(device=torch.device("meta"))


def test_every_shape_fits_an_arena_of_a_hundred_gigabytes(bench: Bench) -> None:
    for name, decode in speed_decode.shapes(bench).items():
        pool = speed_decode.pool_for(bench, decode)
        assert blocks_of(pool, decode.lens) <= pool.blocks, name
    for name, prefill in speed_prefill.shapes(bench).items():
        pool = speed_prefill.pool_for(bench, prefill)
        assert blocks_of(pool, prefill.keys) <= pool.blocks, name
    for name, peer in speed_peers.shapes(bench).items():
        pool, _ = speed_peers._pool_and_batch(bench, peer, torch.bfloat16)
        assert pool.blocks >= peer.rows * -(-peer.keys // peer.block_size), name


def test_every_goal_is_measured_by_a_case(bench: Bench) -> None:
    from benches.gpu import speed_engine, speed_rest, speed_sampling
    from benches.gpu.goals import GOALS

    found = {shape.goal for shape in speed_decode.shapes(bench).values()}
    found |= {shape.goal for shape in speed_prefill.shapes(bench).values()}
    for module in (speed_rest, speed_sampling, speed_engine):
        found |= {case.name for case in module.cases(bench)}
    peers = {shape.what for shape in speed_peers.shapes(bench).values()}
    found |= {f"{what} over {peer}" for what in peers for peer in ("vLLM's Triton", "the best peer")}
    source = "".join(path.read_text() for path in Path(timing.__file__).parent.glob("speed_*.py"))
    assert [goal for goal in GOALS if goal not in found and f'"{goal}"' not in source] == []


def test_every_goal_of_attention_has_a_case(bench: Bench) -> None:
    from benches.gpu.goals import GOALS

    decodes = {shape.goal for shape in speed_decode.shapes(bench).values()} - {""}
    prefills = {shape.goal for shape in speed_prefill.shapes(bench).values()} - {""}
    assert decodes | prefills <= GOALS.keys()
    assert {goal for goal in GOALS if goal.startswith("decode") and " over " not in goal} == decodes
    assert {goal for goal in GOALS if goal.startswith("prefill") and " over " not in goal} == prefills
