"""Steps that a device has been given one ahead, without a model or a device."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from airi import _core
from airi.engine.backends.cuda.pipeline import DevicePipeline
from airi.engine.backends.cuda.tiers import ranges_to_zero
from airi.engine.runner import StepArrays
from airi.errors import EngineDeadError


class HeldEvent:
    """Is reached when it is told to, at a time of the device."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.at_us = 0.0
        self.error: Exception | None = None

    def reach(self, at_us: float = 0.0, error: Exception | None = None) -> None:
        self.at_us, self.error = at_us, error
        self.reached.set()

    def synchronize(self) -> None:
        assert self.reached.wait(60)
        if self.error is not None:
            raise self.error

    def is_done(self) -> bool:
        return self.reached.is_set()

    def micros_since(self, earlier: HeldEvent) -> float:
        return self.at_us - earlier.at_us


class HeldDevice:
    """Does nothing by itself."""

    def __init__(self) -> None:
        self.events: list[HeldEvent] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def record(self) -> HeldEvent:
        self.events.append(HeldEvent())
        return self.events[-1]

    def step(self, number: int) -> tuple[HeldEvent, HeldEvent]:
        """When a step begins and when it ends."""
        began, ended = self.events[2 * number : 2 * number + 2]
        return began, ended


class Runner:
    """Remembers what it was given, and gives it back."""

    def __init__(self) -> None:
        self.enqueued: list[StepArrays] = []

    def enqueue(self, arrays: StepArrays, **_: object) -> Any:
        self.enqueued.append(arrays)
        return SimpleNamespace(finish=lambda: arrays)


def info(buffer: int = 0, num_ops: int = 0) -> _core.StepInfo:
    fields = {"num_rows": 1, "num_deltas": 0, "num_tokens": 1, "num_prefill_tokens": 0}
    return cast(_core.StepInfo, SimpleNamespace(model=0, buffer=buffer, step_id=7, num_ops=num_ops, **fields))


class Bench:
    """A pipeline on a device that waits to be told."""

    def __init__(self) -> None:
        self.device, self.runner = HeldDevice(), Runner()
        self.arrays = [StepArrays.allocate(1, 1, 1, 1) for _ in range(2)]
        models = cast(Any, [SimpleNamespace(runner=self.runner)])
        self.pipeline = DevicePipeline(models, self.arrays, cast(Any, self.device), cast(Any, None), None)

    def launch(self, buffer: int = 0, *, planned_for_s: float = 0.0) -> None:
        self.pipeline.launch(info(buffer), {}, since=time.perf_counter() - planned_for_s)

    def is_told(self, timeout_s: float = 60.0) -> bool:
        """Whether the descriptor is readable, in time."""
        return bool(select.select([self.pipeline.done_fd], [], [], timeout_s)[0])


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for event in bench.device.events:
        event.reach()


def test_a_step_is_enqueued_while_the_one_before_runs_and_no_further_one(bench: Bench) -> None:
    bench.launch(0)
    assert bench.pipeline.is_running
    assert not bench.pipeline.is_full
    bench.launch(1)
    assert [id(a) for a in bench.runner.enqueued] == [id(a) for a in bench.arrays]
    assert bench.pipeline.is_full
    with pytest.raises(RuntimeError, match="step 7 was not collected"):
        bench.launch(0)
    with pytest.raises(RuntimeError, match="step 7 was not collected"):
        bench.pipeline.use(bench.arrays)
    assert not bench.is_told(0.0)
    bench.device.step(0)[1].reach()
    assert bench.is_told()
    assert cast(Any, bench.pipeline.collect()[1]) is bench.arrays[0]
    assert bench.pipeline.is_running
    assert not bench.pipeline.is_full
    assert not bench.is_told(0.0), "of the other one nothing is known"


def test_the_descriptor_tells_of_every_step_that_has_ended(bench: Bench) -> None:
    bench.launch(0)
    bench.launch(1)
    for number in range(2):
        bench.device.step(number)[1].reach()
    for buffer in range(2):
        assert bench.is_told()
        assert cast(Any, bench.pipeline.collect()[1]) is bench.arrays[buffer]
    assert not bench.is_told(0.0)
    assert not bench.pipeline.is_running
    with pytest.raises(RuntimeError, match="no step was launched"):
        bench.pipeline.collect()


def test_an_interrupt_while_waiting_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    bench.launch(0)
    bench.launch(1)
    with monkeypatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.pipeline.collect()
    assert bench.pipeline.is_full
    for number in range(2):
        bench.device.step(number)[1].reach()
        assert cast(Any, bench.pipeline.collect()[1]) is bench.arrays[number]


def collected(bench: Bench, number: int, began_us: float, ended_us: float) -> int:
    began, ended = bench.device.step(number)
    began.reach(began_us)
    ended.reach(ended_us)
    return bench.pipeline.collect()[2]


def test_steps_take_what_the_device_says_and_the_gaps_that_the_host_makes(bench: Bench) -> None:
    bench.launch(0)
    bench.launch(1)
    assert collected(bench, 0, 1_000.0, 5_000.0) == 4_000
    assert collected(bench, 1, 5_010.0, 9_000.0) in range(3_990, 4_001), "its plan took next to no time"
    bench.launch(0, planned_for_s=0.003)
    assert collected(bench, 2, 12_500.0, 20_000.0) == pytest.approx(7_500 + 3_000, abs=900)
    bench.launch(1, planned_for_s=0.5)
    assert collected(bench, 3, 20_700.0, 21_000.0) == 1_000, "the device waited for less of the plan"


def test_the_next_plan_is_due_before_the_step_that_runs_ends(bench: Bench) -> None:
    assert bench.pipeline.time_to_plan_s() == 0.0
    bench.launch(0)
    assert bench.pipeline.time_to_plan_s() == 0.0, "nobody knows how long it takes"
    collected(bench, 0, 0.0, 60e6)
    bench.launch(1)
    assert 40.0 < bench.pipeline.time_to_plan_s() <= 51.0
    bench.device.step(1)[1].reach()
    assert bench.is_told()
    while bench.pipeline.time_to_plan_s():  # the descriptor is told a moment before
        time.sleep(0.001)


def test_what_the_device_ends_with_is_raised(bench: Bench) -> None:
    bench.launch(0)
    bench.device.step(0)[1].reach(error=RuntimeError("an illegal memory access was encountered"))
    assert bench.is_told(), "whoever waits wakes up"
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="the device failed: an illegal memory access"):
            bench.pipeline.collect()


def test_a_device_that_takes_nothing_any_more_ends_the_engine_rather_than_every_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner makes of any error a step whose rows have failed."""

    def refused() -> HeldEvent:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    monkeypatch.setattr(bench.device, "record", refused)
    with pytest.raises(EngineDeadError) as error:
        bench.launch(0)
    assert str(error.value) == "the device failed: CUDA error: an illegal memory access was encountered"


def test_a_step_that_outlives_its_pipeline_writes_to_nothing_of_others() -> None:
    before = set(threading.enumerate())
    bench = Bench()
    bench.launch(0)
    done = bench.pipeline.done_fd
    [thread] = set(threading.enumerate()) - before
    ended = bench.device.step(0)[1]
    del bench
    other = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        assert other != done, "it is open still"
        ended.reach()
        thread.join(60)
        assert not thread.is_alive(), "the thread ends with its pipeline"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(done)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(other)
    finally:
        ended.reach()
        os.close(other)


def test_memory_operations_come_before_the_step_and_others_are_refused(bench: Bench) -> None:
    bench.arrays[0].ops[0] = (int(_core.MemoryOpKind.STORE), 0, 0, 0, 1)
    with pytest.raises(ValueError, match="memory operation 1 is not one of this device"):
        bench.pipeline.launch(info(num_ops=1), {}, since=0.0)
    assert not bench.runner.enqueued


def test_ranges_of_a_step_without_tiers_are_zeroed_at_once() -> None:
    ops = np.array([[_core.MemoryOpKind.ZERO, -1, 2, 0, 3], [_core.MemoryOpKind.ZERO, -1, 9, 0, 1]], np.int64)
    assert ranges_to_zero(ops).tolist() == [[2, 3], [9, 1]]
