"""Small operations on a step's tokens and on the block table: what a captured step needs before its first layer.

Names in kernels: `*_ptr` pointers, `stride_*` in elements, `i_*` program ids, `o_*` offsets, `m_*` masks, `b_*` tiles.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from ._checks import check, check_tensor
from ._launch import launch_guard
from ._values import check_lines, check_queries, check_range, is_seen

# Tokens, or rows, of one program: one each thread, what a step of 256 rows fills two programs with.
_BLOCK = 128
# Deltas that are compared with each other: 128 of them spill 464 bytes on gfx942, four warps take 254 registers.
_DELTAS = 64


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "steps", "block_size"])
def _map_tokens_kernel(
    query_start_ptr,
    seq_lens_ptr,
    slots_ptr,
    table_ptr,
    out_ptr,
    stride_table: tl.int64,
    num_tokens,
    num_rows,
    steps,
    block_size,
    BLOCK: tl.constexpr,
):
    """The row of token t is the last one that starts at or before it: found by bisection, `steps` halvings."""
    o_t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m_t = o_t < num_tokens
    m_live = m_t & (o_t < tl.load(query_start_ptr + num_rows))
    o_low = tl.zeros([BLOCK], tl.int32)
    o_high = tl.zeros([BLOCK], tl.int32) + num_rows
    for _ in range(steps):
        o_mid = (o_low + o_high) // 2
        b_start = tl.load(query_start_ptr + o_mid, mask=m_live, other=0)
        o_low = tl.where(b_start <= o_t, o_mid, o_low)
        o_high = tl.where(b_start <= o_t, o_high, o_mid)
    b_end = tl.load(query_start_ptr + o_low + 1, mask=m_live, other=0)
    b_position = tl.load(seq_lens_ptr + o_low, mask=m_live, other=0) - (b_end - o_t)
    m_live &= b_position >= 0
    b_line = tl.load(slots_ptr + o_low, mask=m_live, other=0).to(tl.int64) * stride_table
    b_entry = tl.load(table_ptr + b_line + b_position // block_size, mask=m_live, other=-1)
    tl.store(out_ptr + o_t, b_entry, mask=m_t)


def map_tokens(
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    out_entries: torch.Tensor,
    *,
    block_size: int,
) -> None:
    """Writes the block-table entry of each token's block; -1 for tokens beyond query_start[R], which are padding.

        out_entries[t] = block_table[slots[r], p // block_size]    r: the row of t, p: its position in its sequence

    All int32: query_start [R + 1], seq_lens and slots [R], block_table [S, C], out_entries [T]. Grid: T / 128.
    """
    rows = seq_lens.shape[0] if seq_lens.dim() else 0
    device = out_entries.device
    check_tensor("out_entries", out_entries, torch.int32, (None,))
    check_rows(query_start, seq_lens, slots, device)
    check_tensor("block_table", block_table, torch.int32, (None, None), device, contiguous=False)
    check("block_size", block_size, "1 or more", ok=block_size >= 1)
    tokens = out_entries.shape[0]
    if not tokens:
        return
    if not rows:
        out_entries.fill_(-1)
        return
    if is_seen(device):
        live = np.flatnonzero(query_start.diff().numpy())
        check_queries(live, query_start, tokens)
        check_lines(live, seq_lens, slots, block_table, block_size)
    with launch_guard():
        _map_tokens_kernel[(triton.cdiv(tokens, _BLOCK),)](
            query_start,
            seq_lens,
            slots,
            block_table,
            out_entries,
            block_table.stride(0),
            tokens,
            rows,
            rows.bit_length(),
            block_size,
            BLOCK=_BLOCK,
            num_warps=4,
        )


def check_rows(
    query_start: torch.Tensor, seq_lens: torch.Tensor, slots: torch.Tensor | None, device: torch.device
) -> None:
    """Raises ValueError unless the rows' tensors have fitting dtypes and shapes, on `device`."""
    check_tensor("seq_lens", seq_lens, torch.int32, (None,), device)
    check_tensor("query_start", query_start, torch.int32, (seq_lens.shape[0] + 1,), device)
    if slots is not None:
        check_tensor("slots", slots, torch.int32, (seq_lens.shape[0],), device)


@triton.jit(do_not_specialize=["num_slots", "num_columns"])
def _apply_table_deltas_kernel(
    table_ptr,
    deltas_ptr,
    count_ptr,
    stride_table: tl.int64,
    num_deltas,
    num_slots,
    num_columns,
    BLOCK: tl.constexpr,
):
    """One program, so that of two deltas to one place the later one stands: a chunk leaves out what it repeats."""
    o_d = tl.arange(0, BLOCK)
    o_end = tl.minimum(tl.load(count_ptr), num_deltas)
    for first in range(0, o_end, BLOCK):
        m_d = first + o_d < o_end
        o_at = deltas_ptr + (first + o_d) * 3
        b_slot = tl.load(o_at, mask=m_d, other=-1)
        b_column = tl.load(o_at + 1, mask=m_d, other=-1)
        b_entry = tl.load(o_at + 2, mask=m_d, other=-1)
        m_in = m_d & (b_slot >= 0) & (b_slot < num_slots) & (b_column >= 0) & (b_column < num_columns)
        b_place = b_slot.to(tl.int64) * stride_table + b_column
        m_later = (b_place[:, None] == b_place[None, :]) & (o_d[:, None] < o_d[None, :])  # [BLOCK, BLOCK]
        m_last = tl.max(m_later.to(tl.int32), 1) == 0
        tl.store(table_ptr + b_place, b_entry, mask=m_in & m_last)
        tl.debug_barrier()


def apply_table_deltas(block_table: torch.Tensor, deltas: torch.Tensor, count: torch.Tensor) -> None:
    """Makes the first count[0] changes to the block table, in their order.

        block_table[slot, column] = entry

    block_table is int32 [S, C]; deltas int32 [n, 3] (slot, column, entry); count int32 [1] on the device, at most n
    are made. A change outside of the table is left out. Grid: one program.
    """
    check_tensor("block_table", block_table, torch.int32, (None, None), contiguous=False)
    check_tensor("deltas", deltas, torch.int32, (None, 3), block_table.device)
    check_tensor("count", count, torch.int32, (1,), block_table.device)
    if not deltas.shape[0]:
        return
    with launch_guard():
        _apply_table_deltas_kernel[(1,)](
            block_table,
            deltas,
            count,
            block_table.stride(0),
            deltas.shape[0],
            *block_table.shape,
            BLOCK=_DELTAS,
            num_warps=8,
        )


@triton.jit(do_not_specialize=["num_rows", "pending_flag"])
def _fill_tokens_kernel(
    tokens_ptr,
    last_tokens_ptr,
    query_start_ptr,
    slots_ptr,
    row_flags_ptr,
    num_rows,
    pending_flag,
    BLOCK: tl.constexpr,
):
    o_r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m_r = o_r < num_rows
    b_start = tl.load(query_start_ptr + o_r, mask=m_r, other=0)
    b_end = tl.load(query_start_ptr + o_r + 1, mask=m_r, other=0)
    b_flags = tl.load(row_flags_ptr + o_r, mask=m_r, other=0).to(tl.int32)
    m_r &= (b_end > b_start) & ((b_flags & pending_flag) != 0)
    b_slot = tl.load(slots_ptr + o_r, mask=m_r, other=0)
    b_token = tl.load(last_tokens_ptr + b_slot, mask=m_r, other=0)
    tl.store(tokens_ptr + b_start, b_token, mask=m_r)


def fill_tokens(
    tokens: torch.Tensor,
    last_tokens: torch.Tensor,
    query_start: torch.Tensor,
    slots: torch.Tensor,
    row_flags: torch.Tensor,
    pending_flag: int,
) -> None:
    """Gives the rows that carry `pending_flag` the token that the step before sampled for their slot.

        tokens[query_start[r]] = last_tokens[slots[r]]    where row_flags[r] & pending_flag and the row has a query

    tokens [T] and last_tokens [S] are int32, query_start [R + 1] and slots [R] int32, row_flags [R] uint8;
    pending_flag is one bit. Grid: R / 128.
    """
    check_tensor("tokens", tokens, torch.int32, (None,))
    check_tensor("last_tokens", last_tokens, torch.int32, (None,), tokens.device)
    check_tensor("row_flags", row_flags, torch.uint8, (None,), tokens.device)
    rows = row_flags.shape[0]
    check_tensor("query_start", query_start, torch.int32, (rows + 1,), tokens.device)
    check_tensor("slots", slots, torch.int32, (rows,), tokens.device)
    check("pending_flag", pending_flag, "one bit of a byte", ok=pending_flag in {1 << i for i in range(8)})
    if not rows:
        return
    if is_seen(tokens.device):
        live = np.flatnonzero((query_start.diff() > 0).numpy() & ((row_flags & pending_flag) != 0).numpy())
        check_queries(live, query_start, tokens.shape[0])
        check_range("slots", slots.numpy()[live], 0, last_tokens.shape[0] - 1, at=live)
    with launch_guard():
        _fill_tokens_kernel[(triton.cdiv(rows, _BLOCK),)](
            tokens,
            last_tokens,
            query_start,
            slots,
            row_flags,
            rows,
            pending_flag,
            BLOCK=_BLOCK,
            num_warps=4,
        )
