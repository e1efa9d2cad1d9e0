"""The KV arena in a device's memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from airi.engine.arena import format_bytes
from airi.engine.backends.cuda.budget import enough_memory, first_line
from airi.engine.backends.cuda.device import Device
from airi.errors import MemoryBudgetError

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceArena"]


class DeviceArena:
    """One tensor; whatever is done to it is enqueued behind the steps before.

    Its memory can be given back, and is taken again, elsewhere, when it is next used: views stay valid, as they look
    where their storage is, and what holds addresses, such as graphs, learns it from `generation`.
    """

    def __init__(self, device: Device, num_bytes: int) -> None:
        """Zeroed; raises MemoryBudgetError, as does whatever uses it after a release."""
        self._device = device
        self.nbytes = num_bytes
        self.generation = 0
        """How often its address may have changed."""
        self._is_released = False
        self._spare: torch.Tensor | None = None
        """Host memory that weights were in last: to pin as much takes longer than to copy it."""
        with self._enough("kv_memory"), device.active():
            self._memory = device.zeros(num_bytes)

    @property
    def memory(self) -> torch.Tensor:
        """uint8 [bytes]"""
        if self._is_released:
            less = "kv_memory, or free what others take"
            with self._enough(less), self._device.active():
                self._memory.untyped_storage().resize_(self.nbytes)
                self._memory.zero_()
            self._is_released = False
            self.generation += 1
        return self._memory

    def part(self, start: int, count: int) -> torch.Tensor:
        """As `Arena.part`."""
        return self.memory[start : start + count]

    def zero(self, start: int, count: int) -> None:
        """As `Arena.zero`."""
        with self._device.active():
            self.part(start, count).zero_()

    def room(self, count: int) -> torch.Tensor:
        """As `Arena.room`: pinned, so that it comes back as fast as the bus goes; the last one again where it fits."""
        spare, self._spare = self._spare, None
        if spare is not None and len(spare) == count:
            return spare
        del spare  # before as much again is pinned
        try:
            return self._device.pinned(count)
        except RuntimeError as error:
            raise MemoryBudgetError(
                f"{format_bytes(count)} of the host's memory, to save weights in, are not to be had "
                f"({first_line(error)}); free as much, or raise the limit of locked memory",
                field="model",
            ) from None

    def save(self, start: int, room: torch.Tensor) -> None:
        """As `Arena.save`."""
        with self._device.active():
            room.copy_(self.part(start, len(room)), non_blocking=True)
            self._device.record().synchronize()  # others overwrite what is there from other streams, too

    def restore(self, start: int, room: torch.Tensor) -> None:
        """As `Arena.restore`."""
        with self._device.active():
            self.part(start, len(room)).copy_(room, non_blocking=True)
            self._device.record().synchronize()  # the caller writes something else there

    def free(self, room: torch.Tensor) -> None:
        """As `Arena.free`: one is kept, the last."""
        self._spare = room

    def release(self) -> None:
        """As `Arena.release`."""
        self._device.synchronize()
        with self._device.active():
            self._memory.untyped_storage().resize_(0)
        self._is_released = True
        self._device.give_back()

    def _enough(self, less: str) -> AbstractContextManager[None]:
        return enough_memory(self._device, "the engine", f"a KV arena of {format_bytes(self.nbytes)}", less)
