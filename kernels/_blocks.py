"""Checked arguments of what is done to whole blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ._checks import check, check_tensor
from ._values import check_blocks, check_range, is_seen
from .layout import GRANULE_BYTES, KvLayout


def block_granules(layout: KvLayout) -> int:
    """Granules of a block that holds one layer."""
    return -(-layout.layer_bytes // GRANULE_BYTES)


def check_arena(name: str, arena: torch.Tensor) -> None:
    """Raises ValueError unless it is bytes in whole granules."""
    check_tensor(name, arena, torch.uint8, (None,))
    size = arena.numel()
    check(name, f"{size} bytes", f"a multiple of {GRANULE_BYTES}", ok=size % GRANULE_BYTES == 0)


def check_entries(name: str, arena: torch.Tensor, entries: torch.Tensor) -> None:
    """Raises ValueError unless the arena is one, and `entries` int32 [any, 2] beside it."""
    check_arena("arena", arena)
    check_tensor(name, entries, torch.int32, (None, 2), arena.device)


def check_pairs(arena: torch.Tensor, pairs: torch.Tensor, granules: int) -> None:
    """Raises ValueError unless these are pairs of blocks of an arena; their values are looked at on a CPU alone."""
    check_entries("pairs", arena, pairs)
    most = arena.numel() // GRANULE_BYTES
    check("granules", granules, f"1 to the arena's {most}", ok=1 <= granules <= most)
    if is_seen(arena.device):
        live = np.flatnonzero(pairs[:, 0].numpy() >= 0)
        check_range("pairs", pairs.numpy()[live, 0], 0, most - granules, at=live)
        check_range("pairs", pairs.numpy()[live, 1], 0, most - granules, at=live)


def check_ranges(arena: torch.Tensor, ranges: torch.Tensor) -> None:
    """Raises ValueError unless these are ranges of an arena's granules; their values are looked at on a CPU alone."""
    check_entries("ranges", arena, ranges)
    if is_seen(arena.device):
        live = np.flatnonzero(ranges[:, 1].numpy() > 0)
        first, count = ranges.numpy()[live].astype(np.int64).T
        check_range("ranges", first, 0, arena.numel() // GRANULE_BYTES - 1, at=live)
        check_range("ends of ranges", first + count, 0, arena.numel() // GRANULE_BYTES, at=live)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """The checked arguments of gather_dequant."""

    arena: torch.Tensor
    layout: KvLayout
    block_table: torch.Tensor
    slots: torch.Tensor
    seq_lens: torch.Tensor
    starts: torch.Tensor
    scratch: torch.Tensor
    scratch_layout: KvLayout
    scratch_table: torch.Tensor
    layer_offset: int
    num_blocks: int | None

    def __post_init__(self) -> None:
        device, layout, to = self.arena.device, self.layout, self.scratch_layout
        check_arena("arena", self.arena)
        check_arena("scratch", self.scratch)
        check("scratch", f"on {self.scratch.device}", f"on {device}", ok=self.scratch.device == device)
        check("layout.dtype", layout.dtype, "a quantised dtype", ok=layout.is_quantised)
        check("scratch_layout.dtype", to.dtype, "a float", ok=not to.is_quantised)
        found = to.num_kv_heads, to.head_dim
        wanted = layout.num_kv_heads, layout.head_dim
        check("scratch_layout's kv heads and head_dim", found, f"{wanted}, as layout's", ok=found == wanted)
        check_tensor("seq_lens", self.seq_lens, torch.int32, (None,), device)
        rows = self.seq_lens.shape[0]
        check_tensor("block_table", self.block_table, torch.int32, (None, None), device)
        check_tensor("slots", self.slots, torch.int32, (rows,), device)
        check_tensor("starts", self.starts, torch.int32, (rows + 1,), device)
        check_tensor("scratch_table", self.scratch_table, torch.int32, (rows, None), device)
        offset_ok = 0 <= self.layer_offset < max(1, self.arena.numel()) and self.layer_offset % 4 == 0
        accepted = f"a multiple of 4 inside the arena's {self.arena.numel()} bytes"
        check("layer_offset", self.layer_offset, accepted, ok=offset_ok)
        asked = self.blocks
        check("num_blocks", asked, f"0 to the scratch's {self._held}", ok=0 <= asked <= self._held)
        if is_seen(device):
            self._check_values()

    def _check_values(self) -> None:
        starts = self.starts.numpy()
        counts = np.diff(starts)
        check("starts[0]", starts[0], "0", ok=starts[0] == 0)
        for row in np.flatnonzero(counts < 0)[:1]:
            check(f"starts[{row + 1}]", starts[row + 1], f"{starts[row]} or more", ok=False)
        most = self.scratch_table.shape[1]
        for row in np.flatnonzero(counts > most)[:1]:
            check(f"blocks of row {row}", counts[row], f"the scratch_table's {most} at most", ok=False)
        rows = np.flatnonzero(counts)
        of_rows = self.seq_lens, self.slots, self.block_table, self.layout, self.arena, self.layer_offset
        check_blocks(rows, *of_rows)

    @property
    def blocks(self) -> int:
        """How many blocks of the scratch may be written."""
        return self._held if self.num_blocks is None else self.num_blocks

    @property
    def _held(self) -> int:
        return int(self.scratch.numel()) // (block_granules(self.scratch_layout) * GRANULE_BYTES)
