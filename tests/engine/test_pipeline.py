"""The thread that runs steps, without a model."""

from __future__ import annotations

import os
import select
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from airi import _core
from airi.engine.memory import HostArena
from airi.engine.pipeline import StepPipeline
from airi.engine.runner import StepArrays


class HeldRunner:
    """A step of its begins, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def take_over(self, *_: object, **__: object) -> None:
        pass

    def run(self, *_: object, **__: object) -> None:
        self.begun.set()
        self.may_end.wait(60)


STEP = cast(
    _core.StepInfo,
    SimpleNamespace(
        model=0, buffer=0, num_rows=1, num_deltas=0, num_tokens=1, num_ops=0, num_prefill_tokens=0
    ),
)


def pipeline_of(runner: HeldRunner) -> StepPipeline:
    return StepPipeline(
        cast(Any, [SimpleNamespace(runner=runner)]),
        [StepArrays.allocate(1, 1, 1, 1)],
        HostArena(np.zeros(1, np.uint8)),
        None,
    )


def test_a_step_that_outlives_its_pipeline_writes_to_nothing_of_others() -> None:
    """Were its descriptor closed before it ends, it would write into what was opened next."""
    runner = HeldRunner()
    before = set(threading.enumerate())
    pipeline = pipeline_of(runner)
    pipeline.launch(STEP, {}, since=time.perf_counter())
    runner.begun.wait(60)
    done = pipeline.done_fd
    [thread] = set(threading.enumerate()) - before
    del pipeline
    others = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        assert others != done, "it is open still"
        runner.may_end.set()
        thread.join(60)
        assert not thread.is_alive(), "the thread ends with its pipeline"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(done)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(others)
    finally:
        runner.may_end.set()
        os.close(others)


def test_what_lies_between_two_steps_is_part_of_the_second() -> None:
    """The device waits for it, and so do the tokens."""
    runner = HeldRunner()
    runner.may_end.set()
    pipeline = pipeline_of(runner)
    begins = time.perf_counter()
    pipeline.launch(STEP, {}, since=begins)
    micros = 0
    for step in range(20):
        if step < 19:
            time.sleep(0.005)  # of the plan of the next one
            pipeline.launch(STEP, {}, since=time.perf_counter())
            assert pipeline.is_full
        micros += pipeline.collect()[2]
        assert not pipeline.is_full
    passed = time.perf_counter() - begins
    assert not pipeline.is_running
    assert micros / 1e6 <= passed + 20e-6, "every step is a whole number of microseconds"


def test_a_step_begins_with_its_plan_where_none_ran() -> None:
    runner = HeldRunner()
    runner.may_end.set()
    pipeline = pipeline_of(runner)
    began = time.perf_counter()
    time.sleep(0.05)
    pipeline.launch(STEP, {}, since=began)
    assert pipeline.collect()[2] >= 50_000


def test_a_step_that_nobody_collects_holds_up_none_meanwhile() -> None:
    runner = HeldRunner()
    runner.may_end.set()
    pipeline = pipeline_of(runner)
    pipeline.launch(STEP, {}, since=time.perf_counter())
    assert select.select([pipeline.done_fd], [], [], 60)[0]
    time.sleep(0.5)
    begins = time.perf_counter()
    pipeline.launch(STEP, {}, since=begins)
    pipeline.collect()
    micros = pipeline.collect()[2]
    assert micros / 1e6 <= time.perf_counter() - begins + 1e-6, "not the half second before"


def test_an_interrupt_while_a_step_runs_loses_neither_it_nor_the_one_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = HeldRunner()
    pipeline = pipeline_of(runner)
    pipeline.launch(STEP, {}, since=0.0)
    pipeline.launch(STEP, {}, since=0.0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.collect()
    assert pipeline.is_running
    assert pipeline.is_full
    runner.may_end.set()
    assert pipeline.collect()[0] is STEP
    assert pipeline.collect()[0] is STEP
    assert not pipeline.is_running
