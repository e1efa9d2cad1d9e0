"""Brings tensors of a mapped checkpoint to the device, a piece at a time through pinned memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from airi.engine.backends.cuda.device import Device, Event
from airi.engine.checkpoint import RawTensor

if TYPE_CHECKING:
    import torch

__all__ = ["Stager"]

_PIECE_BYTES = 16 * 2**20
"""Large enough that a copy's fixed cost does not show, small beside a host's memory."""


class Stager:
    """Copies host arrays into device tensors; while the device takes one piece the host prepares the next.

    Holds two pieces of pinned memory and no other copy of anything. What it copied counts once `finish` returned.
    *Thread safety*: none; used inside `Device.active()`.
    """

    def __init__(self, device: Device, piece_bytes: int = _PIECE_BYTES) -> None:
        self._device = device
        self._piece_bytes = piece_bytes
        self._pieces = [device.pinned(piece_bytes) for _ in range(2)]
        self._taken: list[Event | None] = [None, None]
        self._next = 0

    def rows(
        self, blocks: Sequence[RawTensor], target: torch.Tensor, rows: Sequence[range], columns: range
    ) -> None:
        """Fills target [sum of rows, columns] with these rows and columns of the blocks put one below the other."""
        at = 0
        for raw in _pieces_of(blocks, rows):
            source = host_tensor(raw)[:, columns.start : columns.stop]
            self._copy(source, target[at : at + len(source)])
            at += len(source)

    def finish(self) -> None:
        """Waits until the device has everything, and gives the pinned memory back."""
        self._device.synchronize()
        self._pieces.clear()

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        per_piece = max(1, self._piece_bytes // (source.shape[1] * source.itemsize))
        for start in range(0, len(source), per_piece):
            rows = source[start : start + per_piece]
            index, self._next = self._next, 1 - self._next
            taken = self._taken[index]
            if taken is not None:
                taken.synchronize()
            raw = self._pieces[index][: rows.numel() * rows.itemsize]
            piece = raw.view(rows.dtype).view(rows.shape)
            piece.copy_(rows)
            # Another dtype is made on the device: narrower on the way, and not the host's work.
            target[start : start + per_piece].copy_(piece.to(target.device, non_blocking=True))
            self._taken[index] = self._device.record()


def host_tensor(raw: RawTensor) -> torch.Tensor:
    """The tensor as stored, in place."""
    import torch

    if raw.dtype == "BF16":
        return torch.from_numpy(raw.data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(raw.data)


def _pieces_of(blocks: Sequence[RawTensor], rows: Sequence[range]) -> Iterator[RawTensor]:
    """Views of the rows of the blocks put one below the other, in the order of `rows`."""
    for wanted in rows:
        first = 0
        for block in blocks:
            count = len(block.data)
            start, stop = max(wanted.start - first, 0), min(wanted.stop - first, count)
            if start < stop:
                yield block.rows(start, stop)
            first += count
