"""The host in a device's place, as late as a device may be: what only an asynchronous one would show is seen here.

Work of the steps' stream is done when it is enqueued, which is one of the orders that there may be. What is between
the host and the device is done when an event behind it is waited for, and no earlier:

    to the host         what is there meanwhile is garbage
    to the device       what the host writes to it meanwhile is a fault; in the second stream, what the step's stream
                        reads of the target meanwhile is garbage, and what it writes there is lost
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch.overrides import TorchFunctionMode

from airi.engine.backends.cuda import device as devices
from airi.engine.backends.cuda import pipeline
from airi.engine.backends.cuda.device import CpuDevice, Event

_GARBAGE = 0xFF
"""As a byte of floating-point numbers: not a number."""
_PATIENCE_S = 0.01
"""How long who copies keys and values waits for further steps, which may be none."""


class Stream:
    """What was enqueued and not waited for."""

    def __init__(self) -> None:
        self.enqueued: list[Callable[[], None]] = []
        self.reached = 0

    @property
    def end(self) -> int:
        return self.reached + len(self.enqueued)

    def reach(self, place: int) -> None:
        while self.reached < place:
            self.reached += 1
            self.enqueued.pop(0)()


class LateEvent:
    def __init__(self, device: LateDevice) -> None:
        self._device, self._stream = device, device.current
        self._place, self._turn = device.current.end, device.turns

    def synchronize(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            with self._device.turned:
                self._device.turned.wait_for(lambda: self._device.turns > self._turn + 1, _PATIENCE_S)
        self.reach()

    def reach(self) -> None:
        with self._device.lock:
            self._stream.reach(self._place)

    def is_done(self) -> bool:
        return self._stream.reached >= self._place

    def micros_since(self, earlier: Event) -> float:
        if not self.is_done():
            raise RuntimeError("the event is not done")
        return 1000.0


class LateDevice(CpuDevice):
    """*Thread safety*: as a device's. `faults` has what must not have happened."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.lock, self.turned = threading.RLock(), threading.Condition()
        self.turns = 0
        """Steps that were collected."""
        self.steps, self.copies = Stream(), Stream()
        self.current = self.steps
        self._pinned: dict[int, torch.Tensor] = {}
        """By address; never freed, so that no other memory is taken for it."""

    @contextmanager
    def active(self) -> Iterator[None]:
        with super().active(), _Copies(self):
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.current = self.copies
        try:
            yield
        finally:
            self.current = self.steps

    def pinned(self, num_bytes: int) -> torch.Tensor:
        memory = super().pinned(num_bytes)
        self._pinned[memory.untyped_storage().data_ptr()] = memory
        return memory

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty_like(tensor)
        self._to_host(host, tensor)
        return host

    def record(self) -> LateEvent:
        return LateEvent(self)

    def wait(self, event: Event) -> None:
        self.enqueue(cast(LateEvent, event).reach)

    def synchronize(self) -> None:
        with self.lock:
            self.steps.reach(self.steps.end)
            self.copies.reach(self.copies.end)

    def enqueue(self, work: Callable[[], None]) -> None:
        with self.lock:
            self.current.enqueued.append(work)

    def copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002  # torch's signature
        if self._is_pinned(target) and non_blocking:
            self._to_host(target, source)
        elif not self._is_pinned(source) or self._is_pinned(target):
            target.copy_(source)
        elif self.current is self.steps:
            self._from_host(target, source)
        else:
            _spoil(target)
            self.enqueue(lambda: _assign(target, source))
        return target

    def _to_host(self, target: torch.Tensor, source: torch.Tensor) -> None:
        found = source.clone()
        _spoil(target)
        self.enqueue(lambda: _assign(target, found))

    def _from_host(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)
        found = source.clone()

        def check() -> None:
            if not torch.equal(_bytes(found), _bytes(source)):
                self.faults.append(f"{source.nbytes} bytes were written while they were copied to the device")

        self.enqueue(check)

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned


class _Copies(TorchFunctionMode):  # type: ignore[misc]  # torch is not typed
    def __init__(self, device: LateDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = self._device.copy if func is torch.Tensor.copy_ else func
        return call(*args, **(kwargs or {}))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _assign(target: torch.Tensor, source: torch.Tensor) -> None:
    with torch.inference_mode():
        target.copy_(source)


def _spoil(target: torch.Tensor) -> None:
    _assign(
        target,
        torch.full((target.nbytes,), _GARBAGE, dtype=torch.uint8).view(target.dtype).view(target.shape),
    )


class _OnDemand(ThreadPoolExecutor):
    """Steps end when they are asked for."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return _Later(lambda: work(*args, **kwargs))


class _Later:
    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._found: list[Any] = []

    def done(self) -> bool:
        return bool(self._found)

    def result(self) -> Any:
        if not self._found:
            self._found.append(self._work())
        return self._found[0]


def install(monkeypatch: pytest.MonkeyPatch) -> list[LateDevice]:
    """Has engines of the device "cpu" get late ones; the list has them."""
    made: list[LateDevice] = []

    def make() -> LateDevice:
        made.append(LateDevice())
        return made[-1]

    collect = pipeline.DevicePipeline.collect

    def turning(self: pipeline.DevicePipeline) -> Any:
        found = collect(self)
        device = cast(LateDevice, self._device)
        with device.turned:
            device.turns += 1
            device.turned.notify_all()
        return found

    monkeypatch.setattr(devices, "CpuDevice", make)
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", _OnDemand)
    monkeypatch.setattr(pipeline.DevicePipeline, "collect", turning)
    return made
