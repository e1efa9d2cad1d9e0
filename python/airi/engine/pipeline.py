"""Runs planned steps on a thread of its own, in order, so that the next one can be planned meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.memory import HostArena
from airi.engine.pooling import PoolingRunner
from airi.engine.requests import RequestState
from airi.engine.runner import ModelRunner, StepArrays, StepResult, apply_ops
from airi.engine.tiers import KvTiers

if TYPE_CHECKING:
    from airi.engine.loading import HostedModel

__all__ = ["PLAN_AT", "Signal", "StepPipeline", "kind_of"]

# The next step is planned when this share of the time that a step like the one running took has gone by: early
# enough to be ready in time, late enough for the requests that come meanwhile.
PLAN_AT = 0.85


class Signal:
    """An event's descriptor, open for as long as anybody who reads or writes it: also a step that outlives its
    pipeline, whose write would else reach whatever got the number next."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

    def __del__(self) -> None:
        os.close(self.fd)


class StepPipeline:
    """At most one step runs at a time; one more waits for it to be collected. Knows nothing of the core's decisions.

    *Thread safety*: none; its own thread runs models and touches nothing else.
    """

    def __init__(
        self,
        models: Sequence[HostedModel],
        arrays: Sequence[StepArrays],
        arena: HostArena,
        tiers: KvTiers | None,
    ) -> None:
        """`models` may grow."""
        self._models = models
        self._arena = arena
        self._tiers = tiers
        self._arrays = arrays
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="airi-step")
        self._running: tuple[_core.StepInfo, Future[tuple[StepResult, float]]] | None = None
        self._waiting: tuple[_core.StepInfo, Mapping[int, RequestState]] | None = None
        self._done = Signal()
        self._began = 0.0
        """Of the step that runs, by time.perf_counter()."""
        self._took_s: dict[tuple[int, bool], float] = {}
        """By model and whether there were prefills: the last such step."""

    @property
    def is_running(self) -> bool:
        """Whether a step was launched and not collected."""
        return self._running is not None

    @property
    def is_full(self) -> bool:
        """Whether no step can be launched before one is collected."""
        return self._waiting is not None

    @property
    def done_fd(self) -> int:
        """A file descriptor that is readable when the step that was launched has run."""
        return self._done.fd

    def use(self, arrays: Sequence[StepArrays]) -> None:
        """Takes further steps from these buffer sets. The last one must have been collected."""
        if self._running is not None:
            raise RuntimeError(f"step {self._running[0].step_id} was not collected")
        self._arrays = arrays

    def time_to_plan_s(self) -> float:
        """How long the plan of the next step should wait for requests yet, unless the running one ends first."""
        if self._running is None:
            return 0.0
        info, future = self._running
        took = self._took_s.get(kind_of(info), 0.0)
        return 0.0 if future.done() else max(self._began + PLAN_AT * took - time.perf_counter(), 0.0)

    def launch(self, info: _core.StepInfo, states: Mapping[int, RequestState], *, since: float) -> None:
        """Starts a planned step, or has it wait until the one that runs is collected.

        One that waited begins with the end of that one, or where nobody was there to collect it yet, when somebody
        was: what lies between two steps is part of the time between their tokens, which targets and simulations are
        about. Others begin with their plans, at `since`.
        """
        if self._waiting is not None:
            raise RuntimeError(f"step {self._waiting[0].step_id} was not started")
        if self._running is not None:
            self._waiting = info, states
        else:
            self._began = since
            self._start(info, states)

    def _start(self, info: _core.StepInfo, states: Mapping[int, RequestState]) -> None:
        # No static type tells which platform a hosted model is of; this pipeline is made for the host's.
        runner = cast(ModelRunner | PoolingRunner, self._models[info.model].runner)
        arrays = self._arrays[info.buffer]
        runner.take_over(arrays, rows=info.num_rows, deltas=info.num_deltas, states=states)
        execute = partial(apply_ops, self._arena.array) if self._tiers is None else self._tiers.begin
        future = self._thread.submit(_run, runner, arrays, info, execute, self._done)
        self._running = info, future

    def collect(self) -> tuple[_core.StepInfo, StepResult, int]:
        """Waits for the step that runs: its plan, what it gave, and the microseconds that it took.

        Starts the one that waits. An interrupt meanwhile loses nothing.
        """
        if self._running is None:
            raise RuntimeError("no step was launched")
        info, future = self._running
        called = time.perf_counter()
        result, ended = future.result()
        free = max(ended, called)
        took = self._took_s[kind_of(info)] = ended - self._began
        os.eventfd_read(self._done.fd)
        self._running = None
        if self._waiting is not None:
            following, self._waiting = self._waiting, None
            self._began = free
            self._start(*following)
        return info, result, round(took * 1e6)


def _run(
    runner: ModelRunner | PoolingRunner,
    arrays: StepArrays,
    info: _core.StepInfo,
    execute: Callable[[NDArray[np.int64]], None],
    done: Signal,
) -> tuple[StepResult, float]:
    try:
        if info.num_ops:
            execute(arrays.ops[: info.num_ops])
        return runner.run(arrays, rows=info.num_rows, tokens=info.num_tokens), time.perf_counter()
    finally:
        os.eventfd_write(done.fd, 1)


def kind_of(info: _core.StepInfo) -> tuple[int, bool]:
    return info.model, info.num_prefill_tokens > 0
