"""How often each token was in a request's prompt and output, on the device: what penalties go by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.sampling_ops import SamplingOps
from airi.engine.requests import Feature, RequestState

if TYPE_CHECKING:
    import torch

__all__ = ["PenaltyCounts"]


class PenaltyCounts:
    """A line of counts for every slot whose request has penalties, and no memory before the first has.

    *Thread safety*: none; called inside `Device.active()`, so that everything is in order with the steps.
    """

    def __init__(self, device: Device, ops: SamplingOps, vocab_size: int) -> None:
        self._device = device
        self._ops = ops
        self._vocab_size = vocab_size
        self._counts: torch.Tensor | None = None
        self._lines: dict[int, int] = {}
        """By slot."""
        self._free: list[int] = []

    @property
    def counts(self) -> torch.Tensor:
        """int32 [lines, vocab] as `SamplingOps.start_counts` makes them."""
        if self._counts is None:
            raise RuntimeError("no slot has penalties")
        return self._counts

    def line(self, slot: int) -> int:
        """Which line is the slot's."""
        return self._lines[slot]

    def assign(self, slot: int, state: RequestState) -> None:
        """Counts the tokens of a slot's new request, those before a preemption included; drops the one before."""
        line = self._lines.pop(slot, None)
        if line is not None:
            self._free.append(line)
        if not state.features & Feature.PENALTIES:
            return
        if not self._free:
            self._grow()
        prompt, generated = map(self._device.upload, (state.prompt, state.generated[: state.num_generated]))
        self._ops.start_counts(self.counts, self._free[-1], prompt, generated)
        self._lines[slot] = self._free.pop()

    def add(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        """Counts one more generated token [n] int32 of each slot."""
        lines = self._device.upload(np.array([self._lines[slot] for slot in slots], np.int32))
        self._ops.count_tokens(self.counts, lines, tokens)

    def _grow(self) -> None:
        import torch

        had = 0 if self._counts is None else len(self._counts)
        lines = max(2 * had, 1)
        memory = self._device.zeros(4 * lines * self._vocab_size)
        counts = memory.view(torch.int32).view(lines, self._vocab_size)
        if self._counts is not None:
            counts[:had] = self._counts
        self._counts = counts
        self._free += range(lines - 1, had - 1, -1)
