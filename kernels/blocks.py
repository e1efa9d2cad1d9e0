"""Blocks as wholes: copied, zeroed, and quantised ones gathered as floats for prefill."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._blocks import Gather, block_granules, check_pairs, check_ranges
from ._launch import launch_guard
from ._quantised import FP8_UNIT, half
from .layout import GRANULE_BYTES, KvLayout

__all__ = ["block_granules", "copy_blocks", "gather_dequant", "zero_granules"]

PIECE_GRANULES = 4
"""A program moves 16 KiB at a time: eight times 16 bytes by each of 128 threads."""
_WORDS = GRANULE_BYTES // 4
_ZERO_PROGRAMS = 1024
"""How many programs share the ranges to be zeroed, whose lengths only the device knows."""
_GATHER_BYTES = 8192
"""What a program gathers of keys, and as much of values, where a block of the scratch holds as many tokens."""


def copy_blocks(arena: torch.Tensor, pairs: torch.Tensor, granules: int) -> None:
    """Copies blocks of `granules` granules: pairs is int32 [pairs, 2], (source, target) entries, source -1 for none.

    All pairs are copied at once: a granule that one of them writes must be in no other.
    """
    check_pairs(arena, pairs, granules)
    if pairs.shape[0] == 0:
        return
    pieces = triton.cdiv(granules, PIECE_GRANULES)
    with launch_guard():
        _copy_blocks_kernel[(pairs.shape[0] * pieces,)](
            arena.view(torch.int32), pairs, pieces, granules, _WORDS, PIECE_GRANULES, num_warps=4
        )


def zero_granules(arena: torch.Tensor, ranges: torch.Tensor) -> None:
    """Zeroes granules: ranges is int32 [ranges, 2], (first, how many), count 0 for none."""
    check_ranges(arena, ranges)
    count = ranges.shape[0]
    if count == 0:
        return
    programs = max(8, _ZERO_PROGRAMS // count)
    with launch_guard():
        _zero_granules_kernel[(count, programs)](
            arena.view(torch.int32), ranges, _WORDS, PIECE_GRANULES, num_warps=4
        )


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
    """Writes rows' quantised keys and values as floats: out[t] = stored[t] * scale[t].

    Row r gets blocks [starts[r], starts[r + 1]) of the scratch (starts is int32 [rows + 1] and ascends; a row without
    blocks is left out), of which block b lies at entry b * block_granules(scratch_layout); what lies behind the row's
    last key in them becomes 0. scratch_table, int32 [rows, blocks], gets those entries: prefill reads the scratch by
    it, row r in slot r. The grid is num_blocks (all that the scratch holds, when left out) times kv heads.
    """
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
    if call.blocks == 0:
        return
    to, size = scratch_layout, scratch_layout.dtype.itemsize
    width = triton.next_power_of_2(layout.head_dim)
    tokens = min(triton.next_power_of_2(to.block_size), _GATHER_BYTES // width)
    parts = triton.cdiv(to.block_size, tokens)
    with launch_guard():
        _gather_dequant_kernel[(call.blocks * parts, layout.num_kv_heads)](
            arena.view(torch.int8),
            arena.view(torch.float32),
            block_table,
            slots,
            seq_lens,
            starts,
            scratch.view(to.dtype),
            scratch_table,
            seq_lens.shape[0],
            block_table.stride(0),
            scratch_table.stride(0),
            layer_offset,
            layout.head_stride,
            layout.kv_stride,
            layout.token_stride,
            (layer_offset + layout.scale_offset) // 4,
            layout.head_stride // 4,
            to.head_stride // size,
            to.kv_stride // size,
            to.token_stride // size,
            D=layout.head_dim,
            DP=width,
            FROM_SIZE=layout.block_size,
            TO_SIZE=to.block_size,
            FROM_STEP=GRANULE_BYTES,
            TO_GRANULES=block_granules(to),
            TO_STEP=block_granules(to) * GRANULE_BYTES // size,
            PARTS=parts,
            TOKENS=tokens,
            IS_FP8=layout.dtype is torch.float8_e4m3fn,
            num_warps=4 if tokens * width >= 4096 else 2,  # 16 bytes for each thread, of warps of 64 too
        )


@triton.jit(do_not_specialize=("pieces", "granules"))
def _copy_blocks_kernel(arena_ptr, pair_ptr, pieces, granules, WORDS: tl.constexpr, PIECE: tl.constexpr):
    """One piece of one pair, in words of 4 bytes. Grid: (pairs * pieces)."""
    pair = tl.program_id(0) // pieces
    source = tl.load(pair_ptr + 2 * pair).to(tl.int64)
    target = tl.load(pair_ptr + 2 * pair + 1).to(tl.int64)
    o_granule = tl.program_id(0) % pieces * PIECE + tl.arange(0, PIECE * WORDS) // WORDS
    o_word = (tl.program_id(0) % pieces).to(tl.int64) * (PIECE * WORDS) + tl.arange(0, PIECE * WORDS)
    m_word = (o_granule < granules) & (source >= 0)
    b_piece = tl.load(arena_ptr + source * WORDS + o_word, mask=m_word, other=0)  # [PIECE * WORDS]
    tl.store(arena_ptr + target * WORDS + o_word, b_piece, mask=m_word)


@triton.jit
def _zero_granules_kernel(arena_ptr, range_ptr, WORDS: tl.constexpr, PIECE: tl.constexpr):
    """Every num_programs(1)-th piece of one range. Grid: (ranges, programs)."""
    first = tl.load(range_ptr + 2 * tl.program_id(0)).to(tl.int64)
    count = tl.load(range_ptr + 2 * tl.program_id(0) + 1)
    o_granule = tl.arange(0, PIECE * WORDS) // WORDS
    o_word = tl.arange(0, PIECE * WORDS)
    b_zero = tl.zeros([PIECE * WORDS], tl.int32)
    for begin in tl.range(tl.program_id(1) * PIECE, count, tl.num_programs(1) * PIECE):
        m_word = begin + o_granule < count
        tl.store(arena_ptr + (first + begin) * WORDS + o_word, b_zero, mask=m_word)


@triton.jit(do_not_specialize=("rows", "stride_table", "stride_to_table"))
def _gather_dequant_kernel(
    arena_ptr,
    scale_ptr,
    table_ptr,
    slot_ptr,
    seq_len_ptr,
    start_ptr,
    scratch_ptr,
    to_table_ptr,
    rows,
    stride_table: tl.int64,
    stride_to_table: tl.int64,
    layer_offset: tl.int64,
    stride_head: tl.int64,
    stride_kv: tl.int64,
    stride_token: tl.int64,
    scale_offset: tl.int64,
    stride_scale_head: tl.int64,
    stride_to_head: tl.int64,
    stride_to_kv: tl.int64,
    stride_to_token: tl.int64,
    D: tl.constexpr,
    DP: tl.constexpr,
    FROM_SIZE: tl.constexpr,
    TO_SIZE: tl.constexpr,
    FROM_STEP: tl.constexpr,
    TO_GRANULES: tl.constexpr,
    TO_STEP: tl.constexpr,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    """TOKENS tokens of one scratch block, keys and values of one head. Grid: (blocks * PARTS, kv_heads)."""
    i_block = tl.program_id(0) // PARTS
    i_part = tl.program_id(0) % PARTS
    i_head = tl.program_id(1)
    if i_block >= tl.load(start_ptr + rows):
        return
    row = tl.full((), 0, tl.int32)
    above = rows
    while above - row > 1:  # starts[row] <= i_block < starts[above]
        middle = (row + above) // 2
        is_low = tl.load(start_ptr + middle) <= i_block
        row = tl.where(is_low, middle, row)
        above = tl.where(is_low, above, middle)
    column = i_block - tl.load(start_ptr + row)
    o_entry = row.to(tl.int64) * stride_to_table + column
    tl.store(to_table_ptr + o_entry, i_block * TO_GRANULES, mask=(i_part == 0) & (i_head == 0))

    o_slot = i_part * TOKENS + tl.arange(0, TOKENS)
    o_token = column * TO_SIZE + o_slot
    o_d = tl.arange(0, DP)
    length = tl.load(seq_len_ptr + row)
    m_token = (o_token < length) & (o_slot < TO_SIZE)
    m_d = o_d < D
    table_ptr += tl.load(slot_ptr + row).to(tl.int64) * stride_table
    if FROM_SIZE % TOKENS == 0 and TO_SIZE % TOKENS == 0:
        o_first = column * TO_SIZE + i_part * TOKENS  # its tokens lie in one block
        entry = tl.load(table_ptr + o_first // FROM_SIZE, mask=o_first < length, other=0).to(tl.int64)
    else:
        entry = tl.load(table_ptr + o_token // FROM_SIZE, mask=m_token, other=0).to(tl.int64)  # [TOKENS]
    o_from = layer_offset + i_head * stride_head + entry * FROM_STEP + o_token % FROM_SIZE * stride_token
    o_scale = scale_offset + i_head * stride_scale_head + entry * (FROM_STEP // 4) + o_token % FROM_SIZE
    o_to = i_block.to(tl.int64) * TO_STEP + i_head * stride_to_head + o_slot * stride_to_token
    m_from = m_token[:, None] & m_d[None, :]
    m_to = (o_slot < TO_SIZE)[:, None] & m_d[None, :]
    for kv in tl.static_range(2):
        from_ptr = arena_ptr + (o_from + kv * stride_kv)[:, None] + o_d[None, :]
        b_code = tl.load(from_ptr, mask=m_from, other=0)  # [TOKENS, DP]
        b_scale = tl.load(scale_ptr + o_scale + kv * FROM_SIZE, mask=m_token, other=0.0)  # [TOKENS]
        if IS_FP8:
            b_scale = b_scale * FP8_UNIT
        b_value = half(b_code.to(tl.int16), IS_FP8).to(tl.float32) * b_scale[:, None]
        to_ptr = scratch_ptr + (o_to + kv * stride_to_kv)[:, None] + o_d[None, :]
        tl.store(to_ptr, b_value.to(scratch_ptr.dtype.element_ty), mask=m_to)
