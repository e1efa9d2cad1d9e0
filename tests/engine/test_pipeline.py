"""The thread that runs steps, without a model."""

from __future__ import annotations

import os
import threading
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


def test_a_step_that_outlives_its_pipeline_writes_to_nothing_of_others() -> None:
    """Were its descriptor closed before it ends, it would write into what was opened next."""
    runner = HeldRunner()
    before = set(threading.enumerate())
    pipeline = StepPipeline(
        cast(Any, [SimpleNamespace(runner=runner)]),
        [StepArrays.allocate(1, 1, 1, 1)],
        np.zeros(1, np.uint8),
        None,
    )
    info = SimpleNamespace(
        model=0, buffer=0, num_rows=1, num_deltas=0, num_tokens=1, num_ops=0, num_prefill_tokens=0
    )
    pipeline.launch(cast(_core.StepInfo, info), {})
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
