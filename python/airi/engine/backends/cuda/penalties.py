"""How often each token was in a request's prompt and output, on the device: what penalties go by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from airi.engine.backends.cuda.device import Device
from airi.engine.requests import Feature, RequestState
from airi.kernels.token_counts import IN_PROMPT, ONE_OUTPUT

if TYPE_CHECKING:
    import torch

__all__ = ["PenaltyCounts"]


class PenaltyCounts:
    """A line of counts for every slot whose request has penalties, and no memory before the first has.

    *Thread safety*: none; called inside `Device.active()`, so that everything is in order with the steps.
    """

    def __init__(self, device: Device, vocab_size: int) -> None:
        self._device = device
        self._vocab_size = vocab_size
        self._counts: torch.Tensor | None = None
        self._lines: dict[int, int] = {}
        """By slot."""
        self._free: list[int] = []

    @property
    def counts(self) -> torch.Tensor:
        """int32 [lines, vocab]: `IN_PROMPT` plus `ONE_OUTPUT` for each time it was generated."""
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
        counts = self.counts[self._free[-1]]
        counts.zero_()
        counts.index_fill_(0, self._device.upload(state.prompt.astype(np.int64)), IN_PROMPT)
        if state.num_generated:
            generated = self._device.upload(state.generated[: state.num_generated].astype(np.int64))
            counts.index_put_((generated,), counts.new_full((), ONE_OUTPUT), accumulate=True)
        self._lines[slot] = self._free.pop()

    def add(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        """Counts one more generated token [n] of each slot."""
        lines = self._device.upload(np.array([self._lines[slot] for slot in slots], np.int64))
        counts = self.counts
        counts.index_put_((lines, tokens.long()), counts.new_full((), ONE_OUTPUT), accumulate=True)

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
