"""The planner: cuts a step's attention into items and tiles on the device, so that a captured step plans itself.

The rule, the buffers and the same in numpy are in `attention_plan`.

Names in kernels: `*_ptr` pointers, `i_*` program ids, `o_*` offsets, `m_*` masks, `b_*` tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._checks import check, check_tensor
from ._launch import launch_guard
from .attention_plan import (
    CHUNK_LIMITS,
    FAST_ITEMS_PER_SM,
    MAX_ROWS,
    NO_PARTIAL,
    NO_TILE,
    AttentionPlan,
    DecodeWorkspace,
    HostPlan,
    PlanMode,
    count_items,
    items_per_row,
    plan_on_host,
)
from .tokens import check_rows

__all__ = [
    "NO_PARTIAL",
    "NO_TILE",
    "AttentionPlan",
    "DecodeWorkspace",
    "HostPlan",
    "PlanMode",
    "count_items",
    "items_per_row",
    "plan_attention",
    "plan_on_host",
]

# Rows of a chunk, in two compiled forms: up to 256 rows are one chunk of one row a thread; of more rows two are a
# thread's, as four spill on gfx942.
_SMALL_ROWS, _LARGE_ROWS = 256, 512
# Items of a row that are written together: 8 x 256 rows are 8 stores a thread.
_WIDTH = 8


@triton.jit
def _rows(query_start_ptr, seq_lens_ptr, first, num_rows, window, BLOCK: tl.constexpr):
    """Queries, first and end of visible keys (0, 0 unless the row decodes), and keys of rows first + [0, BLOCK)."""
    o_r = first + tl.arange(0, BLOCK)  # [BLOCK]
    m_r = o_r < num_rows
    b_start = tl.load(query_start_ptr + o_r, mask=m_r, other=0)
    b_queries = tl.load(query_start_ptr + o_r + 1, mask=m_r, other=0) - b_start
    b_keys = tl.load(seq_lens_ptr + o_r, mask=m_r, other=0)
    b_end = tl.where(b_queries == 1, b_keys, 0)
    b_low = tl.where(window > 0, tl.maximum(b_end - window, 0), 0)
    return b_queries, b_low, b_end, b_keys


@triton.jit
def _pieces(b_low, b_end, b_chunk):
    return tl.where(b_end > b_low, (b_end + b_chunk - 1) // b_chunk - b_low // b_chunk, 0)


@triton.jit
def _fast_chunk(
    query_start_ptr,
    seq_lens_ptr,
    num_rows,
    window,
    max_items,
    num_kv_heads,
    num_sms,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    ITEMS_PER_SM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The one chunk of all rows, an int32 scalar."""
    keys = tl.zeros([], tl.int64)
    longest = tl.zeros([], tl.int32)
    for first in range(0, num_rows, BLOCK):
        _, b_low, b_end, _ = _rows(query_start_ptr, seq_lens_ptr, first, num_rows, window, BLOCK)
        keys += tl.sum((b_end - b_low).to(tl.int64), 0)
        longest = tl.maximum(longest, tl.max(b_end, 0))
    chunk = tl.full([], LEAST, tl.int32)
    per_chunk = num_sms.to(tl.int64) * ITEMS_PER_SM
    while (chunk < MOST) & (keys * num_kv_heads > chunk * per_chunk):
        chunk *= 2
    searching = keys > 0
    while searching:
        total = tl.zeros([], tl.int32)
        for first in range(0, num_rows, BLOCK):
            _, b_low, b_end, _ = _rows(query_start_ptr, seq_lens_ptr, first, num_rows, window, BLOCK)
            total += tl.sum(_pieces(b_low, b_end, chunk), 0)
        searching = (total > max_items) & (chunk < longest)
        chunk = tl.where(searching, chunk * 2, chunk)
    return chunk


@triton.jit
def _keep(b_wanted, before, room):
    """What fits of `before` and what comes with these rows: counts, their prefix sums, and what was wanted so far.

    `before` counts everything wanted by earlier rows, so that behind the first row without room none has any.
    """
    b_through = before + tl.cumsum(b_wanted, 0)  # [BLOCK]
    b_kept = tl.where(b_through <= room, b_wanted, 0)
    return b_kept, b_through - b_wanted, before + tl.sum(b_wanted, 0)


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "max_items",
        "max_tiles",
        "num_kv_heads",
        "num_sms",
        "window",
        "tile_queries",
    ]
)
def _plan_kernel(
    query_start_ptr,
    seq_lens_ptr,
    items_ptr,
    row_items_ptr,
    tiles_ptr,
    counts_ptr,
    num_rows,
    max_items,
    max_tiles,
    num_kv_heads,
    num_sms,
    window,
    tile_queries,
    FAST: tl.constexpr,
    LEAST: tl.constexpr,
    DOUBLINGS: tl.constexpr,
    ITEMS_PER_SM: tl.constexpr,
    NO_PARTIAL: tl.constexpr,
    NO_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    if FAST:
        chunk = _fast_chunk(
            query_start_ptr, seq_lens_ptr, num_rows, window, max_items, num_kv_heads, num_sms,
            LEAST, LEAST << DOUBLINGS, ITEMS_PER_SM, BLOCK,
        )  # fmt: skip
    items = tl.zeros([], tl.int32)
    tiles = tl.zeros([], tl.int32)
    kept_items = tl.zeros([], tl.int32)
    kept_tiles = tl.zeros([], tl.int32)
    partials = tl.zeros([], tl.int32)
    o_j = tl.arange(0, WIDTH)
    for first in range(0, num_rows, BLOCK):
        o_r = first + tl.arange(0, BLOCK)  # [BLOCK]
        b_queries, b_low, b_end, b_keys = _rows(query_start_ptr, seq_lens_ptr, first, num_rows, window, BLOCK)
        if FAST:
            b_chunk = tl.zeros([BLOCK], tl.int32) + chunk
        else:
            b_chunk = tl.full([BLOCK], LEAST, tl.int32)
            b_work = (b_end - b_low).to(tl.int64) * num_kv_heads
            for i in tl.static_range(DOUBLINGS):
                b_chunk = tl.where(b_work > (LEAST << i) * num_sms.to(tl.int64), LEAST << (i + 1), b_chunk)

        b_pieces, b_at, items = _keep(_pieces(b_low, b_end, b_chunk), items, max_items)
        kept_items += tl.sum(b_pieces, 0)
        partials += tl.sum(tl.where(b_pieces > 1, b_pieces, 0), 0)
        tl.store(row_items_ptr + o_r, tl.minimum(b_at, kept_items), mask=o_r < num_rows)
        b_cut = b_low // b_chunk
        for j in range(0, tl.max(b_pieces, 0), WIDTH):
            b_j = (j + o_j)[None, :]  # [1, WIDTH]
            m_item = b_j < b_pieces[:, None]  # [BLOCK, WIDTH]
            b_begin = tl.maximum((b_cut[:, None] + b_j) * b_chunk[:, None], b_low[:, None])
            b_stop = tl.minimum((b_cut[:, None] + b_j + 1) * b_chunk[:, None], b_end[:, None])
            b_index = b_at[:, None] + b_j
            o_item = items_ptr + b_index * 4
            tl.store(o_item, o_r[:, None] + tl.zeros_like(b_j), mask=m_item)
            tl.store(o_item + 1, b_begin, mask=m_item)
            tl.store(o_item + 2, b_stop, mask=m_item)
            tl.store(o_item + 3, tl.where(b_pieces[:, None] > 1, b_index, NO_PARTIAL), mask=m_item)

        b_wanted = tl.where((b_queries > 1) & (b_keys > 0), (b_queries + tile_queries - 1) // tile_queries, 0)
        b_tiles, b_at, tiles = _keep(b_wanted, tiles, max_tiles)
        kept_tiles += tl.sum(b_tiles, 0)
        for j in range(0, tl.max(b_tiles, 0), WIDTH):
            b_j = (j + o_j)[None, :]  # [1, WIDTH]
            m_tile = b_j < b_tiles[:, None]  # [BLOCK, WIDTH]
            o_tile = tiles_ptr + (b_at[:, None] + b_j) * 2
            tl.store(o_tile, o_r[:, None] + tl.zeros_like(b_j), mask=m_tile)
            tl.store(o_tile + 1, b_tiles[:, None] - 1 - b_j, mask=m_tile)

    tl.store(row_items_ptr + num_rows, kept_items)
    for first in range(kept_tiles, max_tiles, BLOCK):
        o_t = first + tl.arange(0, BLOCK)
        tl.store(tiles_ptr + o_t * 2, tl.full([BLOCK], NO_TILE, tl.int32), mask=o_t < max_tiles)
        tl.store(tiles_ptr + o_t * 2 + 1, tl.full([BLOCK], NO_TILE, tl.int32), mask=o_t < max_tiles)
    tl.store(counts_ptr, kept_items)
    tl.store(counts_ptr + 1, kept_tiles)
    tl.store(counts_ptr + 2, items - kept_items + tiles - kept_tiles)
    tl.store(counts_ptr + 3, partials)


def plan_attention(
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    plan: AttentionPlan,
    *,
    num_kv_heads: int,
    tile_queries: int,
    num_sms: int,
    window: int = 0,
    mode: PlanMode = "invariant",
) -> None:
    """Cuts the attention of rows into the plan's items (one query) and tiles of `tile_queries` queries (more).

    query_start int32 [R + 1], seq_lens int32 [R] with R up to 4,096 and no more than the plan has room for; all
    of the plan that counts is written, see `attention_plan` for the rule. What finds no room is left out whole rows
    at a time and counted in plan.counts[2]. Grid: one program.
    """
    device = plan.counts.device
    check_plan(plan, device)
    check_rows(query_start, seq_lens, None, device)
    rows = seq_lens.shape[0]
    most = min(plan.row_items.shape[0] - 1, MAX_ROWS)
    check("seq_lens", f"{rows} rows", f"at most {most} rows", ok=rows <= most)
    check("num_kv_heads", num_kv_heads, "1 or more", ok=num_kv_heads >= 1)
    check("tile_queries", tile_queries, "1 or more", ok=tile_queries >= 1)
    check("window", window, "0 (none) or more", ok=window >= 0)
    check("num_sms", num_sms, "1 or more", ok=num_sms >= 1)
    check("mode", mode, "invariant or fast", ok=mode in CHUNK_LIMITS)
    least, largest = CHUNK_LIMITS[mode]
    block = _SMALL_ROWS if rows <= _SMALL_ROWS else _LARGE_ROWS
    with launch_guard():
        _plan_kernel[(1,)](
            query_start,
            seq_lens,
            plan.items,
            plan.row_items,
            plan.tiles,
            plan.counts,
            rows,
            plan.items.shape[0],
            plan.tiles.shape[0],
            num_kv_heads,
            num_sms,
            window,
            tile_queries,
            FAST=mode == "fast",
            LEAST=least,
            DOUBLINGS=(largest // least).bit_length() - 1,
            ITEMS_PER_SM=FAST_ITEMS_PER_SM,
            NO_PARTIAL=NO_PARTIAL,
            NO_TILE=NO_TILE,
            BLOCK=block,
            WIDTH=_WIDTH,
            num_warps=8,
        )


def check_plan(plan: AttentionPlan, device: torch.device) -> None:
    """Raises ValueError unless the plan's buffers have their dtypes and shapes, on `device`."""
    check_tensor("plan.items", plan.items, torch.int32, (None, 4), device)
    check_tensor("plan.row_items", plan.row_items, torch.int32, (None,), device)
    check_tensor("plan.tiles", plan.tiles, torch.int32, (None, 2), device)
    check_tensor("plan.counts", plan.counts, torch.int32, (4,), device)
