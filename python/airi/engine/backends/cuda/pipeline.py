"""Gives planned steps to a device one ahead, so that it never waits for the host."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from airi import _core
from airi.engine.backends.cuda.arena import DeviceArena
from airi.engine.backends.cuda.batch import StagedArrays
from airi.engine.backends.cuda.budget import first_line
from airi.engine.backends.cuda.device import Device, Event
from airi.engine.backends.cuda.ops import ops_for
from airi.engine.backends.cuda.runner import DeviceRunner, EnqueuedStep
from airi.engine.backends.cuda.tiers import DeviceTiers, ranges_to_zero
from airi.engine.pipeline import PLAN_AT, Signal, kind_of
from airi.engine.requests import RequestState
from airi.engine.runner import StepArrays, StepResult
from airi.errors import EngineDeadError

if TYPE_CHECKING:
    from airi.engine.loading import HostedModel

__all__ = ["DevicePipeline"]

_PATIENCE_S = 600.0
"""How long a step may take on several devices, where one may wait for another for ever."""
_POLL_S = 20e-6
"""Between looks at an event of several devices, one of which may be lost."""
_DEPTH = 2
"""Steps that the device has been given: one that runs, one that begins when that has ended."""
_LAUNCHES_AHEAD = 2.0
"""The next step is planned no later than it would take to enqueue so many like the last one."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    info: _core.StepInfo
    step: EnqueuedStep
    began: Event
    """The device's turn has come: behind all that was enqueued before."""
    ended: Event
    done: Future[float]
    """When it had ended, by time.perf_counter()."""
    since: float
    """When its plan was begun."""
    enqueued_from: float
    """When that was over."""


class DevicePipeline:
    """At most two steps are enqueued. Knows nothing of the core's decisions.

    *Thread safety*: none; its own thread waits for events and touches nothing else.
    *Invariant*: steps run and are collected in the order in which they were launched.
    """

    def __init__(
        self,
        models: Sequence[HostedModel],
        arrays: Sequence[StepArrays],
        device: Device,
        arena: DeviceArena,
        tiers: DeviceTiers | None,
    ) -> None:
        """`models` may grow."""
        self._models = models
        self._arrays = arrays
        self._device = device
        self._arena = arena
        self._tiers = tiers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="airi-step-end")
        self._flying: deque[_InFlight] = deque()
        self._done = Signal()
        self._last: Event | None = None
        """The end of the step that was collected last."""
        self._began = 0.0
        """When the oldest step began, as far as the host knows."""
        self._took_s: dict[tuple[int, bool], float] = {}
        """By model and whether there were prefills: the last such step."""
        self._launch_s = 0.0
        """What it took to enqueue the last one, without what it waited."""
        self._waited_s = 0.0
        self._lost: Future[NoReturn] | None = None

    def give_up_with(self, lost: Future[NoReturn]) -> None:
        """Has `collect` raise what `lost` ends with, rather than wait for a step that cannot end any more."""
        self._lost = lost

    @property
    def is_running(self) -> bool:
        """As `Pipeline.is_running`."""
        return bool(self._flying)

    @property
    def is_full(self) -> bool:
        """As `Pipeline.is_full`."""
        return len(self._flying) == _DEPTH

    @property
    def done_fd(self) -> int:
        """As `Pipeline.done_fd`."""
        return self._done.fd

    def use(self, arrays: Sequence[StepArrays]) -> None:
        """As `Pipeline.use`."""
        if self._flying:
            raise RuntimeError(f"step {self._flying[0].info.step_id} was not collected")
        self._arrays = arrays

    def time_to_plan_s(self) -> float:
        """As `Pipeline.time_to_plan_s`: the plan and its launches must be over before the step that runs is."""
        if not self._flying:
            return 0.0
        oldest = self._flying[0]
        if oldest.done.done():
            return 0.0
        took = self._took_s.get(kind_of(oldest.info), 0.0)
        ahead = max((1 - PLAN_AT) * took, _LAUNCHES_AHEAD * self._launch_s)
        return max(self._began + took - ahead - time.perf_counter(), 0.0)

    def launch(self, info: _core.StepInfo, states: Mapping[int, RequestState], *, since: float) -> None:
        """As `Pipeline.launch`: enqueues the step, behind the one that runs."""
        if self.is_full:
            raise RuntimeError(f"step {self._flying[0].info.step_id} was not collected")
        enqueued_from = time.perf_counter()
        self._waited_s = 0.0
        arrays = self._arrays[info.buffer]
        # No static type tells which platform these are of; this pipeline is made for a device's.
        runner = cast(DeviceRunner, self._models[info.model].runner)
        with self._device.active():
            began = self._record()
            if info.num_ops:
                self._execute(arrays, info.num_ops)
            step = runner.enqueue(
                cast(StagedArrays, arrays),
                rows=info.num_rows,
                tokens=info.num_tokens,
                deltas=info.num_deltas,
                states=states,
                wait=self._wait_for,
            )
            ended = self._record()
        if not self._flying:
            self._began = enqueued_from
        done = self._thread.submit(_wait, ended, self._done)
        self._flying.append(_InFlight(info, step, began, ended, done, since, enqueued_from))
        self._launch_s = time.perf_counter() - enqueued_from - self._waited_s

    def _wait_for(self, event: Event) -> None:
        """Waits within a launch; raises EngineDeadError where what is waited for cannot come any more."""
        began = time.perf_counter()
        try:
            if self._lost is None:
                event.synchronize()
            while not event.is_done():
                if self._lost is not None and self._lost.done():
                    self._lost.result()
                if time.perf_counter() - began > _PATIENCE_S:
                    raise EngineDeadError(f"a step did not end within {_PATIENCE_S:g} s")
                time.sleep(_POLL_S)
        except EngineDeadError:
            raise
        except Exception as error:
            raise _lost(error) from error
        finally:
            self._waited_s += time.perf_counter() - began

    def _record(self) -> Event:
        """An event; a device that does not even take that is lost, whatever a step made of it before."""
        try:
            return self._device.record()
        except Exception as error:
            raise _lost(error) from error

    def _execute(self, arrays: StepArrays, count: int) -> None:
        """Begins a step's memory operations."""
        ops = arrays.ops[:count]
        if self._tiers is None:
            ranges = ranges_to_zero(ops)
            kernels = ops_for(self._device.torch_device)
            kernels.zero_granules(self._arena.memory, self._device.upload(ranges))
        else:
            self._tiers.begin(ops)

    def collect(self) -> tuple[_core.StepInfo, StepResult, int]:
        """As `Pipeline.collect`. Raises EngineDeadError with what the device ended with; nothing can run there then."""
        if not self._flying:
            raise RuntimeError("no step was launched")
        oldest = self._flying[0]
        if self._lost is not None:
            ends = cast("list[Future[Any]]", [oldest.done, self._lost])
            if not wait(ends, _PATIENCE_S, FIRST_COMPLETED).done:
                raise EngineDeadError(f"a step did not end within {_PATIENCE_S:g} s")
            if self._lost.done():
                self._lost.result()
        try:
            self._began = ended = oldest.done.result()
        except Exception as error:
            raise _lost(error) from error
        os.eventfd_read(self._done.fd)
        self._flying.popleft()
        micros = self._micros(oldest)
        self._last = oldest.ended
        self._took_s[kind_of(oldest.info)] = micros / 1e6
        if self._flying:
            self._began = max(ended, self._flying[0].enqueued_from)
        return oldest.info, oldest.step.finish(), round(micros)

    def _micros(self, step: _InFlight) -> float:
        """What a step took by the device's clock, with what lay between it and the one before, as far as the host was
        at work on it then: nobody may have wanted it earlier."""
        micros = step.ended.micros_since(step.began)
        if self._last is None:
            return micros
        gap = step.began.micros_since(self._last)
        return micros + min(max(gap, 0.0), (step.enqueued_from - step.since) * 1e6)


def _lost(error: Exception) -> EngineDeadError:
    return EngineDeadError(f"the device failed: {first_line(error)}")


def _wait(ended: Event, done: Signal) -> float:
    try:
        ended.synchronize()
        return time.perf_counter()
    finally:
        os.eventfd_write(done.fd, 1)
