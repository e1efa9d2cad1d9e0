"""Activations of a step, in memory that never moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["StepBuffers"]

_ALIGNMENT = 512


class StepBuffers:
    """Named rows of activations, [tokens, width] each, for up to `max_tokens` tokens.

    Names of different groups lie in different memory; those of one group replace each other, as the projections of
    attention and of the MLP do, which are never needed at once.
    *Invariant*: a name's rows start at the same address, whatever the number of tokens.
    """

    def __init__(
        self,
        groups: tuple[tuple[Mapping[str, int], ...], ...],
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        import torch

        self.max_tokens = max_tokens
        self._places: dict[str, tuple[int, int]] = {}
        multiple = _ALIGNMENT // dtype.itemsize
        at = 0
        for alternatives in groups:
            end = at
            for widths in alternatives:
                place = at
                for name, width in widths.items():
                    self._places[name] = place, width
                    place += -(-max_tokens * width // multiple) * multiple
                end = max(end, place)
            at = end
        # Zeros: rows of padding are computed with, and must not slow that down or trap.
        self._memory = torch.zeros(at, dtype=dtype, device=device)

    def rows(self, name: str, tokens: int) -> torch.Tensor:
        """The first `tokens` rows, contiguous."""
        place, width = self._places[name]
        return self._memory[place : place + tokens * width].view(tokens, width)

    @property
    def nbytes(self) -> int:
        """All of it."""
        return int(self._memory.nbytes)
