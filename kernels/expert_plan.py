"""Which rows go to which expert: the buffers that say so, without Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._checks import check

TILE_ROWS = (16, 64, 128)
"""What tiles may have. 32 spills registers on gfx942, and is bound by memory as 64 is."""


def max_tiles(assignments: int, num_experts: int, tile_rows: int) -> int:
    """Tiles that any routing fits: each expert's last one may be cut off, and no more experts than assignments."""
    return assignments // tile_rows + min(num_experts, assignments)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlan:
    """The routing of T tokens with k choices each: A = T * k assignments, assignment a of token a // k.

    *Invariant*: `counts` is zero between launches.
    """

    experts: torch.Tensor
    """int32 [A]: the chosen expert, -1 for none."""
    weights: torch.Tensor
    """float32 [A]"""
    order: torch.Tensor
    """int32 [A]: assignments by expert, in any order for one of them; only what tiles name counts."""
    tiles: torch.Tensor
    """int32 [tiles, 3]: expert, first place in `order` and number of places; none has number 0."""
    counts: torch.Tensor
    """int32 [experts]"""
    cursors: torch.Tensor
    """int32 [experts]: where an expert's next assignment goes."""

    @classmethod
    def allocate(cls, device: torch.device | str, max_assignments: int, num_experts: int) -> ExpertPlan:
        """Room for so many assignments and tiles of any size."""
        check("num_experts", num_experts, "1 or more", ok=num_experts >= 1)
        tiles = max_tiles(max_assignments, num_experts, min(TILE_ROWS))

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        return cls(
            experts=ints(max_assignments),
            weights=torch.zeros(max_assignments, dtype=torch.float32, device=device),
            order=ints(max_assignments),
            tiles=ints(tiles, 3),
            counts=ints(num_experts),
            cursors=ints(num_experts),
        )

    def narrow(self, assignments: int, tile_rows: int) -> ExpertPlan:
        """The front of the same memory, for fewer assignments and tiles of `tile_rows`."""
        return ExpertPlan(
            experts=self.experts[:assignments],
            weights=self.weights[:assignments],
            order=self.order[:assignments],
            tiles=self.tiles[: max_tiles(assignments, len(self.counts), tile_rows)],
            counts=self.counts,
            cursors=self.cursors,
        )
