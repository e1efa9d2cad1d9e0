"""Attention of chunks of prompts over paged memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import prefill_tma
from ._attend import log_sum, scores, shares, softmax_step, visible
from ._launch import INTERPRETED, check, launch_guard
from ._prefill import HasTiles, Prefill, Tiles, prefill_tiles
from .arch import arch_of
from .layout import GRANULE_BYTES, KvLayout

__all__ = ["Tiles", "paged_prefill", "prefill_tiles"]

VARIANTS = ("auto", "tma", "pointer")


def paged_prefill(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    plan: HasTiles,
    out: torch.Tensor,
    *,
    scale: float,
    num_tiles: int,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    variant: str = "auto",
    lse: torch.Tensor | None = None,
) -> None:
    """Attends the queries of the plan's tiles: out[t, h] = sum_k softmax_k(cap(scale q_t . k_k)) v_k over the keys
    up to t's own position, the last `window` of them where that is not 0; cap(s) = softcap * tanh(s / softcap).

    q is [kv_heads, tokens, group, head_dim], out [tokens, kv_heads * group, head_dim], lse (the natural logarithm of
    each softmax's denominator) float32 [tokens, kv_heads * group]. Keys and values have q's dtype: what is quantised
    goes through `gather_dequant` first. Tokens in none of the plan's first `num_tiles` tiles are not written; a query
    that sees no key gets zeros, and -inf in lse. Raises ValueError naming the argument.
    """
    call = Prefill(
        q=q,
        arena=arena,
        layout=layout,
        block_table=block_table,
        slots=slots,
        query_start=query_start,
        seq_lens=seq_lens,
        tiles=plan.tiles,
        out=out,
        lse=lse,
        scale=scale,
        softcap=softcap,
        window=window,
        layer_offset=layer_offset,
        num_tiles=num_tiles,
    )
    check("variant", variant, f"one of {VARIANTS}", ok=variant in VARIANTS)
    if num_tiles == 0:
        return
    arch = arch_of(q.device)
    tiles = prefill_tiles(
        arch, layout.head_dim, call.group, layout.dtype, layout.block_size, has_window=window > 0
    )
    misfit = "" if variant == "pointer" else prefill_tma.misfit(call, tiles, arch)
    if variant == "tma":
        check("variant", f"tma, for which {misfit}", "auto or pointer", ok=misfit is None)
        prefill_tma.launch(call)
    elif misfit is not None or not prefill_tma.try_launch(call):
        _launch_pointer(call, tiles)


def _launch_pointer(call: Prefill, tiles: Tiles) -> None:
    layout, size = call.layout, call.layout.dtype.itemsize
    with launch_guard():
        _paged_prefill_kernel[call.grid](
            call.q,
            call.arena.view(layout.dtype),
            call.out,
            call.lse,
            call.tiles,
            call.query_start,
            call.seq_lens,
            call.slots,
            call.block_table,
            *call.q.stride()[:3],
            *call.out.stride()[:2],
            call.block_table.stride(0),
            call.layer_offset // size,
            layout.head_stride // size,
            layout.kv_stride // size,
            layout.token_stride // size,
            call.scale,
            call.softcap,
            call.window,
            D=layout.head_dim,
            DP=triton.next_power_of_2(layout.head_dim),
            GROUP=call.group,
            BLOCK_SIZE=layout.block_size,
            ENTRY_STEP=GRANULE_BYTES // size,
            BM=tiles.block_m,
            TILE=tiles.tile,
            HAS_WINDOW=call.window > 0,
            HAS_SOFTCAP=call.softcap > 0,
            UPCAST=INTERPRETED and call.q.dtype is torch.bfloat16,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )


@triton.jit(do_not_specialize=("stride_table", "window"))
def _paged_prefill_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    lse_ptr,
    tile_ptr,
    query_start_ptr,
    seq_len_ptr,
    slot_ptr,
    table_ptr,
    stride_qh: tl.int64,
    stride_qt: tl.int64,
    stride_qg: tl.int64,
    stride_ot: tl.int64,
    stride_oh: tl.int64,
    stride_table: tl.int64,
    layer_offset: tl.int64,
    stride_head: tl.int64,
    stride_kv: tl.int64,
    stride_token: tl.int64,
    scale,
    softcap,
    window,
    D: tl.constexpr,
    DP: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ENTRY_STEP: tl.constexpr,
    BM: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of BM // GROUP queries of a row, all GROUP query heads of a kv head. Grid: (tiles, kv_heads)."""
    BQ: tl.constexpr = BM // GROUP
    i_tile = tl.program_id(0)
    i_head = tl.program_id(1)
    row = tl.load(tile_ptr + 2 * i_tile)
    if row < 0:
        return
    first = tl.load(tile_ptr + 2 * i_tile + 1) * BQ
    start = tl.load(query_start_ptr + row)
    queries = tl.load(query_start_ptr + row + 1) - start
    keys = tl.load(seq_len_ptr + row)
    context = keys - queries
    table_ptr += tl.load(slot_ptr + row).to(tl.int64) * stride_table
    kv_ptr += layer_offset + i_head * stride_head

    o_m = tl.arange(0, BM)
    o_d = tl.arange(0, DP)
    o_query = first + o_m // GROUP
    o_group = o_m % GROUP
    m_query = (o_query < queries) & (o_m < BQ * GROUP)
    m_d = o_d < D
    m_out = m_query[:, None] & m_d[None, :]
    o_token = (start + o_query).to(tl.int64)
    o_q = i_head * stride_qh + o_token * stride_qt + o_group * stride_qg
    b_q = tl.load(q_ptr + o_q[:, None] + o_d[None, :], mask=m_out, other=0.0)  # [BM, DP]
    if UPCAST:
        b_q = b_q.to(tl.float32)

    b_acc = tl.zeros([BM, DP], tl.float32)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    o_position = context + o_query
    end = tl.minimum(context + first + BQ, keys)
    if HAS_WINDOW:
        # Windows are a few tiles long: one masked loop drains its pipeline once.
        begin = tl.maximum(context + first - window + 1, 0) // TILE * TILE
    else:
        begin = tl.maximum(context + first + 1, 0) // TILE * TILE  # every query of the tile sees all before
        for o_tile in tl.range(0, begin, TILE):
            b_acc, b_max, b_sum = _attend_tile(
                b_q, b_acc, b_max, b_sum, o_tile, o_position, keys, kv_ptr, table_ptr, stride_kv, stride_token,
                scale, softcap, window,
                D, DP, BLOCK_SIZE, ENTRY_STEP, TILE, HAS_WINDOW, HAS_SOFTCAP, UPCAST, MASKED=False,
            )  # fmt: skip
    for o_tile in tl.range(begin, end, TILE):
        b_acc, b_max, b_sum = _attend_tile(
            b_q, b_acc, b_max, b_sum, o_tile, o_position, keys, kv_ptr, table_ptr, stride_kv, stride_token,
            scale, softcap, window,
            D, DP, BLOCK_SIZE, ENTRY_STEP, TILE, HAS_WINDOW, HAS_SOFTCAP, UPCAST, MASKED=True,
        )  # fmt: skip

    b_out = shares(b_acc, b_sum)
    o_head = i_head * GROUP + o_group
    o_out = o_token * stride_ot + o_head * stride_oh
    tl.store(out_ptr + o_out[:, None] + o_d[None, :], b_out.to(out_ptr.dtype.element_ty), mask=m_out)
    if lse_ptr is not None:
        o_lse = o_token * (tl.num_programs(1) * GROUP) + o_head
        tl.store(lse_ptr + o_lse, log_sum(b_max, b_sum), mask=m_query)


@triton.jit
def _attend_tile(
    b_q, b_acc, b_max, b_sum, o_tile, o_position, keys, kv_ptr, table_ptr, stride_kv, stride_token,
    scale, softcap, window,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_SIZE: tl.constexpr, ENTRY_STEP: tl.constexpr, TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, UPCAST: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Takes the keys [o_tile, o_tile + TILE) into the rows' sums; MASKED: not every query sees every one."""
    o_t = tl.arange(0, TILE)
    o_d = tl.arange(0, DP)
    o_key = o_tile + o_t
    m_key = o_key < keys
    if BLOCK_SIZE % TILE == 0:
        entry = tl.load(table_ptr + o_tile // BLOCK_SIZE).to(tl.int64)
        o_row = entry * ENTRY_STEP + (o_tile % BLOCK_SIZE + o_t) * stride_token  # [TILE]
    else:
        if MASKED:
            entry = tl.load(table_ptr + o_key // BLOCK_SIZE, mask=m_key, other=0).to(tl.int64)
        else:
            entry = tl.load(table_ptr + o_key // BLOCK_SIZE).to(tl.int64)
        o_row = entry * ENTRY_STEP + o_key % BLOCK_SIZE * stride_token
    k_ptr = kv_ptr + o_row[:, None] + o_d[None, :]
    if MASKED:
        m_kv = m_key[:, None] & (o_d < D)[None, :]
        b_k = tl.load(k_ptr, mask=m_kv, other=0.0)  # [TILE, DP]
    elif D == DP:
        b_k = tl.load(k_ptr)
    else:
        b_k = tl.load(k_ptr, mask=(o_d < D)[None, :], other=0.0)
    if UPCAST:
        b_k = b_k.to(tl.float32)
    b_s = scores(b_q, b_k, scale, softcap, HAS_SOFTCAP)  # [BM, TILE]
    if MASKED:
        b_s = tl.where(visible(o_position, o_key, window, HAS_WINDOW), b_s, float("-inf"))
    b_p, b_decay, b_max, b_sum = softmax_step(b_s, b_max, b_sum, MASKED)
    if MASKED:
        b_v = tl.load(k_ptr + stride_kv, mask=m_kv, other=0.0)  # [TILE, DP]
    elif D == DP:
        b_v = tl.load(k_ptr + stride_kv)
    else:
        b_v = tl.load(k_ptr + stride_kv, mask=(o_d < D)[None, :], other=0.0)
    if UPCAST:
        b_v = b_v.to(tl.float32)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision="ieee")
    return b_acc, b_max, b_sum
