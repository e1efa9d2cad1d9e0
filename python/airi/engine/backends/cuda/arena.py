"""The KV arena in a device's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airi.engine.backends.cuda.device import Device

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceArena"]


class DeviceArena:
    """One tensor; whatever is done to it is enqueued behind the steps before.

    Its memory can be given back, and is taken again, elsewhere, when it is next used: views stay valid, as they look
    where their storage is, and what holds addresses, such as graphs, learns it from `generation`.
    """

    def __init__(self, device: Device, num_bytes: int) -> None:
        """Zeroed; raises torch.OutOfMemoryError, as does whatever uses it after a release."""
        self._device = device
        self.nbytes = num_bytes
        self.generation = 0
        """How often its address may have changed."""
        self._is_released = False
        with device.active():
            self._memory = device.zeros(num_bytes)

    @property
    def memory(self) -> torch.Tensor:
        """uint8 [bytes]"""
        if self._is_released:
            with self._device.active():
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

    def save(self, start: int, count: int) -> torch.Tensor:
        """As `Arena.save`: in pinned memory, which comes back as fast as the bus goes."""
        saved = self._device.pinned(count)
        with self._device.active():
            saved.copy_(self.part(start, count), non_blocking=True)
            self._device.record().synchronize()
        return saved

    def restore(self, start: int, saved: torch.Tensor) -> None:
        """As `Arena.restore`."""
        with self._device.active():
            self.part(start, len(saved)).copy_(saved, non_blocking=True)
            self._device.record().synchronize()  # the caller frees what was saved

    def release(self) -> None:
        """As `Arena.release`."""
        self._device.synchronize()
        with self._device.active():
            self._memory.untyped_storage().resize_(0)
        self._is_released = True
        self._device.give_back()
