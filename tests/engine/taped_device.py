"""Graphs on the host that are replayed as a device's are: the same operations on the same memory and numbers, and none
of the code that enqueued them. A number of the host that changes from step to step, or memory that does, shows, as does
what would wait for a device while a step is enqueued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from airi.engine.backends.cuda import device as devices
from airi.engine.backends.cuda import model as models
from airi.engine.backends.cuda import pipeline
from airi.engine.backends.cuda.device import CpuDevice, Graph
from airi.engine.backends.cuda.pipeline import DevicePipeline
from airi.engine.backends.cuda.reference_ops import ReferenceOps
from airi.engine.backends.cuda.sampling_ops import HostSamplingOps, TorchSamplingOps
from airi.errors import EngineDeadError

_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)

Tape = list[Callable[[], object]]


class TapedDevice(CpuDevice):
    """*Thread safety*: none."""

    tape: Tape | None = None
    """What is being captured."""
    num_replays = 0
    is_stepping = False
    """Whether a step is being enqueued."""

    @contextmanager
    def active(self) -> Iterator[None]:
        with super().active(), _Watching() if TapedDevice.is_stepping else nullcontext():
            yield

    def capture(self, work: Callable[[], object]) -> Graph:
        tape: Tape = []
        TapedDevice.tape = tape
        try:
            with _Taping(tape):
                work()
        finally:
            TapedDevice.tape = None
        return _Replayed(self, tape)


class _Replayed:
    def __init__(self, device: TapedDevice, tape: Tape) -> None:
        self._device, self._tape = device, tape

    def replay(self) -> None:
        self._device.num_replays += 1
        with _disable_current_modes():
            for call in self._tape:
                call()


def _must_not_wait(func: Any, args: Any) -> None:
    if func in _INDEXING:  # with places it knows its shape, with a mask it has to look
        waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    else:
        waits = not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(func.tags)
    if waits:
        raise EngineDeadError(f"{func} waits for the device")


class _Watching(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed
    """Refuses operations of torch that wait for a device, those inside of kernels left out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _must_not_wait(func, args)
        return func(*args, **(kwargs or {}))


class _Taping(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed
    """Tapes torch's operations, those inside of kernels left out."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _must_not_wait(func, args)
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func.is_view:
            self._tape.append(partial(_again, func, args, kwargs or {}, made))
        return made


def _again(func: Any, args: Any, kwargs: Any, made: torch.Tensor) -> None:
    found = func(*args, **kwargs)
    if found is not made:  # memory of its own, where the graph has some
        made.copy_(found)


class TapedOps(ReferenceOps):
    """Each operation is one kernel."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not callable(found) or name.startswith("_"):
            return found

        def launched(*args: Any, **kwargs: Any) -> Any:
            tape = TapedDevice.tape
            if tape is not None:
                tape.append(partial(found, *args, **kwargs))
            TapedDevice.tape = None
            try:
                with _disable_current_modes():
                    return found(*args, **kwargs)
            finally:
                TapedDevice.tape = tape

        return launched


def install(monkeypatch: pytest.MonkeyPatch) -> list[TapedDevice]:
    """Has engines of the device "cpu" replay their graphs so; the list has their devices."""
    made: list[TapedDevice] = []

    def make() -> TapedDevice:
        made.append(TapedDevice())
        return made[-1]

    launch = DevicePipeline.launch

    def stepping(*args: Any, **kwargs: Any) -> None:
        TapedDevice.is_stepping = True
        try:
            launch(*args, **kwargs)
        finally:
            TapedDevice.is_stepping = False

    monkeypatch.setattr(DevicePipeline, "launch", stepping)
    monkeypatch.setattr(HostSamplingOps, "gather_logprobs", TorchSamplingOps.gather_logprobs)
    monkeypatch.setattr(devices, "CpuDevice", make)
    for module in (models, pipeline):
        monkeypatch.setattr(module, "ops_for", lambda _: TapedOps())
    return made
