"""Attention of chunks of prompts over quantised paged memory, by pointers.

Products are float16: a key's scale multiplies its scores and a value's its weights, so tiles are converted as they are
stored. Where asynchronous products take values from shared memory in any order, values are converted whole; elsewhere
they are read as int32, four elements at once into four products, because Triton would fetch transposed bytes one by
one. Prefill over what `gather_dequant` wrote does the conversion once and not once per tile of queries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._attend import log_sum, scaled, softmax_step, visible
from ._launch import check, launch_guard
from ._prefill import Prefill, Tiles
from ._quantised import half, quarters
from .arch import Arch
from .layout import GRANULE_BYTES

_ALIGNMENT = 16


def launch(call: Prefill, tiles: Tiles, arch: Arch) -> None:
    """Launches on the queries' device. Raises ValueError for strides that 16 bytes do not divide."""
    layout = call.layout
    strides = (layout.head_stride, layout.kv_stride, layout.token_stride, call.layer_offset)
    accepted = f"multiples of {_ALIGNMENT} for {layout.dtype}"
    check("layout's strides and layer_offset", strides, accepted, ok=not any(n % _ALIGNMENT for n in strides))
    packed = not arch.has_tma
    with launch_guard():
        _paged_prefill_quantised_kernel[call.grid](
            call.q,
            call.arena.view(torch.int8),
            call.arena.view(torch.int32 if packed else torch.int8),
            call.arena.view(torch.float32),
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
            call.layer_offset,
            layout.head_stride,
            layout.kv_stride,
            layout.token_stride,
            (call.layer_offset + layout.scale_offset) // 4,
            call.scale,
            call.softcap,
            call.window,
            D=layout.head_dim,
            # A quarter of a row is at least the 16 elements of a product.
            DP=max(triton.next_power_of_2(layout.head_dim), 64 if packed else 32),
            GROUP=call.group,
            BLOCK_SIZE=layout.block_size,
            GRANULE=GRANULE_BYTES,
            BM=tiles.block_m,
            TILE=tiles.tile,
            HAS_WINDOW=call.window > 0,
            HAS_SOFTCAP=call.softcap > 0,
            IS_FP8=layout.dtype is torch.float8_e4m3fn,
            PACKED=packed,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )


@triton.jit(do_not_specialize=("stride_table", "window"))
def _paged_prefill_quantised_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    scale_ptr,
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
    scale_offset: tl.int64,
    scale,
    softcap,
    window,
    D: tl.constexpr,
    DP: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GRANULE: tl.constexpr,
    BM: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_FP8: tl.constexpr,
    PACKED: tl.constexpr,
):
    """One tile of BM // GROUP queries of a row, all GROUP query heads of a kv head. Grid: (tiles, kv_heads)."""
    BQ: tl.constexpr = BM // GROUP
    DQ: tl.constexpr = DP // 4
    V_BYTES: tl.constexpr = 4 if PACKED else 1
    # Weights times a value's scale are put where float16 holds them well: what was stored is up to 448 / 256 or 127.
    FOLD: tl.constexpr = 256.0 if IS_FP8 else 128.0
    UNFOLD: tl.constexpr = 1.0 if IS_FP8 else 1.0 / 128.0
    KEY_UNIT: tl.constexpr = 256.0 if IS_FP8 else 1.0
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
    k_ptr += layer_offset + i_head * stride_head
    v_ptr += layer_offset // V_BYTES + i_head * (stride_head // V_BYTES) + stride_kv // V_BYTES
    scale_ptr += scale_offset + i_head * (stride_head // 4)

    o_m = tl.arange(0, BM)
    o_d = tl.arange(0, DP)
    o_v = tl.arange(0, DQ) if PACKED else tl.arange(0, DP)
    o_t = tl.arange(0, TILE)
    o_query = first + o_m // GROUP
    o_group = o_m % GROUP
    m_query = (o_query < queries) & (o_m < BQ * GROUP)
    m_d = (o_d < D)[None, :]
    m_v = (o_v < D // V_BYTES)[None, :]
    m_out = m_query[:, None] & m_d
    o_token = (start + o_query).to(tl.int64)
    o_q = i_head * stride_qh + o_token * stride_qt + o_group * stride_qg
    b_q = tl.load(q_ptr + o_q[:, None] + o_d[None, :], mask=m_out, other=0.0)
    b_q = b_q.to(tl.float32).to(tl.float16)  # [BM, DP]
    if PACKED:
        b_a0 = tl.zeros([BM, DQ], tl.float32)
        b_a1 = tl.zeros([BM, DQ], tl.float32)
        b_a2 = tl.zeros([BM, DQ], tl.float32)
        b_a3 = tl.zeros([BM, DQ], tl.float32)
    else:
        b_acc = tl.zeros([BM, DP], tl.float32)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    o_position = context + o_query
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(context + first - window + 1, 0) // TILE * TILE
    end = tl.minimum(context + first + BQ, keys)
    for o_tile in tl.range(begin, end, TILE):
        o_key = o_tile + o_t
        m_key = o_key < keys
        if BLOCK_SIZE % TILE == 0:
            entry = tl.load(table_ptr + o_tile // BLOCK_SIZE).to(tl.int64)
            o_slot = o_tile % BLOCK_SIZE + o_t  # [TILE]
        else:
            entry = tl.load(table_ptr + o_key // BLOCK_SIZE, mask=m_key, other=0).to(tl.int64)
            o_slot = o_key % BLOCK_SIZE
        o_row = entry * GRANULE + o_slot * stride_token
        b_ptr = scale_ptr + entry * (GRANULE // 4) + o_slot
        b_ks = tl.load(b_ptr, mask=m_key, other=0.0) * KEY_UNIT  # [TILE]
        b_vs = tl.load(b_ptr + BLOCK_SIZE, mask=m_key, other=0.0) * FOLD
        b_k = tl.load(k_ptr + o_row[:, None] + o_d[None, :], mask=m_key[:, None] & m_d, other=0)
        b_s = tl.dot(b_q, tl.trans(half(b_k.to(tl.int16), IS_FP8))) * b_ks[None, :]
        b_s = scaled(b_s, scale, softcap, HAS_SOFTCAP)  # [BM, TILE]
        b_s = tl.where(visible(o_position, o_key, window, HAS_WINDOW), b_s, float("-inf"))
        b_p, b_decay, b_max, b_sum = softmax_step(b_s, b_max, b_sum, MASKED=True)
        b_p = (b_p * b_vs[None, :]).to(tl.float16)
        o_value = (o_row // V_BYTES)[:, None] + o_v[None, :]
        b_v = tl.load(v_ptr + o_value, mask=m_key[:, None] & m_v, other=0)  # [TILE, DQ or DP]
        if PACKED:
            b_v0, b_v1, b_v2, b_v3 = quarters(b_v, IS_FP8)
            b_a0 = tl.dot(b_p, b_v0, b_a0 * b_decay[:, None])
            b_a1 = tl.dot(b_p, b_v1, b_a1 * b_decay[:, None])
            b_a2 = tl.dot(b_p, b_v2, b_a2 * b_decay[:, None])
            b_a3 = tl.dot(b_p, b_v3, b_a3 * b_decay[:, None])
        else:
            b_acc = tl.dot(b_p, half(b_v.to(tl.int16), IS_FP8), b_acc * b_decay[:, None])

    if PACKED:
        b_acc = tl.join(tl.join(b_a0, b_a2), tl.join(b_a1, b_a3)).reshape(BM, DP)
    b_out = b_acc * (UNFOLD / tl.where(b_sum == 0.0, 1.0, b_sum))[:, None]
    o_head = i_head * GROUP + o_group
    o_out = o_token * stride_ot + o_head * stride_oh
    tl.store(out_ptr + o_out[:, None] + o_d[None, :], b_out.to(out_ptr.dtype.element_ty), mask=m_out)
    if lse_ptr is not None:
        o_lse = o_token * (tl.num_programs(1) * GROUP) + o_head
        tl.store(lse_ptr + o_lse, log_sum(b_max, b_sum), mask=m_query)
