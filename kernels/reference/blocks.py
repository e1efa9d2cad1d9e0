"""Blocks as wholes: copied, zeroed, and quantised ones gathered as floats; arguments as the launchers'."""

from __future__ import annotations

import torch

from .._blocks import Gather, block_granules, check_pairs, check_ranges
from ..layout import GRANULE_BYTES, KvLayout
from .attention import PagedBatch, gather_kv


def copy_blocks(arena: torch.Tensor, pairs: torch.Tensor, granules: int) -> None:
    """Copies blocks of `granules` granules: pairs is int32 [pairs, 2], (source, target) entries, source -1 for none.

    All sources are read before a target is written.
    """
    check_pairs(arena, pairs, granules)
    whole = arena.view(-1, GRANULE_BYTES)
    taken = [(whole[s : s + granules].clone(), t) for s, t in pairs.tolist() if s >= 0]
    for block, target in taken:
        whole[target : target + granules] = block


def zero_granules(arena: torch.Tensor, ranges: torch.Tensor) -> None:
    """Zeroes granules: ranges is int32 [ranges, 2], (first, how many)."""
    check_ranges(arena, ranges)
    for first, count in ranges.tolist():
        arena.view(-1, GRANULE_BYTES)[first : first + count] = 0


def gather_dequant(
    arena: torch.Tensor,
    layout: KvLayout,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    starts: torch.Tensor,
    scratch: torch.Tensor,
    scratch_layout: KvLayout,
    scratch_table: torch.Tensor,
    *,
    layer_offset: int = 0,
    num_blocks: int | None = None,
) -> None:
    """Writes rows' quantised keys and values as floats into blocks [starts[r], starts[r + 1]) of the scratch, and
    where these are into `scratch_table`."""
    call = Gather(
        arena=arena,
        layout=layout,
        block_table=block_table,
        slots=slots,
        seq_lens=seq_lens,
        starts=starts,
        scratch=scratch,
        scratch_layout=scratch_layout,
        scratch_table=scratch_table,
        layer_offset=layer_offset,
        num_blocks=num_blocks,
    )
    size, step = scratch_layout.block_size, block_granules(scratch_layout)
    for row, (begin, end) in enumerate(zip(starts.tolist(), starts[1:].tolist(), strict=False)):
        if begin == end:
            continue
        alone = PagedBatch(
            query_start=torch.zeros(2, dtype=torch.int32),
            seq_lens=seq_lens[row : row + 1].cpu(),
            slots=slots[row : row + 1].cpu(),
            block_table=block_table,
        )
        keys, values = gather_kv(arena, layout, alone, 0, layer_offset=layer_offset)
        both = torch.stack((keys, values), 1).to(scratch_layout.dtype)  # [kv_heads, K|V, keys, head_dim]
        for column, block in enumerate(range(begin, min(end, call.blocks))):
            part = both[:, :, column * size : (column + 1) * size]
            place = scratch_layout.block(scratch, block * step, 0)
            place.zero_()
            place[:, :, : part.shape[2]] = part
            scratch_table[row, column] = block * step
