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
        np.zeros(1, np.uint8),
        None,
    )


def test_a_step_that_outlives_its_pipeline_writes_to_nothing_of_others() -> None:
    """Were its descriptor closed before it ends, it would write into what was opened next."""
    runner = HeldRunner()
    before = set(threading.enumerate())
    pipeline = pipeline_of(runner)
    pipeline.launch(STEP, {}, follows=False)
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
    slept = 0.0
    begins = time.perf_counter()
    micros = 0
    for step in range(20):
        pipeline.launch(STEP, {}, follows=step > 0)
        micros += pipeline.collect()[2]
        passed = time.perf_counter() - begins
        if step < 19:
            asleep = time.perf_counter()
            time.sleep(0.005)
            slept += time.perf_counter() - asleep
    assert slept <= micros / 1e6 + 20e-6, "every step is a whole number of microseconds"
    assert micros / 1e6 <= passed + 20e-6


def test_a_step_that_nobody_collects_holds_up_none_meanwhile() -> None:
    runner = HeldRunner()
    runner.may_end.set()
    pipeline = pipeline_of(runner)
    pipeline.launch(STEP, {}, follows=False)
    assert select.select([pipeline.done_fd], [], [], 60)[0]
    time.sleep(0.5)
    begins = time.perf_counter()
    pipeline.collect()
    pipeline.launch(STEP, {}, follows=True)
    micros = pipeline.collect()[2]
    assert micros / 1e6 <= time.perf_counter() - begins + 1e-6, "not the half second before"
