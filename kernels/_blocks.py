"""Checked arguments of what is done to whole blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._checks import check, check_tensor
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

    @property
    def blocks(self) -> int:
        """How many blocks of the scratch may be written."""
        return self._held if self.num_blocks is None else self.num_blocks

    @property
    def _held(self) -> int:
        return int(self.scratch.numel()) // (block_granules(self.scratch_layout) * GRANULE_BYTES)
