"""Attention of rows with one query over paged memory, split over the keys of each row.

An item is a piece of one row's keys (`attention_plan`); all query heads of one kv head attend to it together:

    s_k = log2(e) cap(scale q . k_k)        m = max_k s_k        l = sum_k 2^(s_k - m)
    acc = sum_k 2^(s_k - m) v_k / l         lse = ln(2) (m + log2 l)

A row of one item is done then; the items of another are merged by `combine`.

Keys and values of 8 bits are read as int32, four elements of a row at once, and put into float16 by integer
instructions: the bits of an e4m3 number, moved by one place for the sign and seven for the rest, are a float16 of
2^-8 its value; an int8 number plus 128 in the low bits of 1024.0 is 1024 more than that sum. Element 4 i + c goes to
the c-th of four products, so nothing is ever put back in order but the result.

Names in kernels: `*_ptr` pointers, `stride_*` in elements, `i_*` program ids, `o_*` offsets, `m_*` masks, `b_*` tiles.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ._attend import LOG2_E, log_sum, shares, softmax_step
from ._checks import FLOATS, check, check_tensor
from ._launch import INTERPRETED, launch_guard
from ._quantised import quarters
from ._values import check_attended, is_seen, planned_rows
from .arch import arch_of
from .attention_plan import AttentionPlan, DecodeWorkspace
from .combine import check_workspace, combine_partials
from .decode_tiles import MAX_GROUP, PROGRAMS_PER_SM, decode_tiles
from .layout import GRANULE_BYTES, KvLayout
from .plan import check_plan
from .tokens import check_rows

# Bytes in which the strides of keys and values are counted: what makes loads of 128 bits provable.
_UNIT = 16
_BM = tl.constexpr(16)


@triton.jit
def _dot(b_a, b_b, b_c, UPCAST: tl.constexpr):
    """b_c + b_a b_b in float32, of float16 and bfloat16 by matrix units."""
    if UPCAST:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_c, input_precision="ieee")
    return tl.dot(b_a, b_b, b_c, input_precision="ieee")


@triton.jit
def _rows_at(
    base_ptr, b_unit, o_slot, o_d, BYTES: tl.constexpr, TOKEN_STRIDE: tl.constexpr, GATHER: tl.constexpr
):
    """Pointers [TILE, D] to elements o_d of tokens o_slot of the blocks at b_unit (one, or GATHER: one per token)."""
    b_ptr = base_ptr + b_unit * (16 // BYTES)
    if GATHER:
        b_ptr = b_ptr[:, None]
    return b_ptr + (o_slot * (TOKEN_STRIDE // BYTES))[:, None] + o_d[None, :]


@triton.jit(
    do_not_specialize=["layer_units", "head_units", "kv_units", "scale_units", "num_kv_heads", "window"]
)
def _paged_decode_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    scales_ptr,
    table_ptr,
    slots_ptr,
    query_start_ptr,
    seq_lens_ptr,
    items_ptr,
    counts_ptr,
    acc_ptr,
    partial_lse_ptr,
    out_ptr,
    lse_ptr,
    stride_qh: tl.int64,
    stride_qt: tl.int64,
    stride_qg: tl.int64,
    stride_table: tl.int64,
    layer_units: tl.int64,
    head_units: tl.int64,
    kv_units: tl.int64,
    scale_units: tl.int64,
    num_kv_heads,
    window,
    scale,
    softcap,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    GRANULE_UNITS: tl.constexpr,
    KEY_BYTES: tl.constexpr,
    VALUE_BYTES: tl.constexpr,
    QUANTISED: tl.constexpr,
    INT8: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Programs take items x kv heads in turn, heads fastest: those of one block lie in one page."""
    GATHER: tl.constexpr = TILE > BLOCK_SIZE
    ALIGN: tl.constexpr = BLOCK_SIZE if GATHER else TILE
    PACKED_K: tl.constexpr = QUANTISED and KEY_BYTES == 4
    DQ: tl.constexpr = DP // 4
    # What quantised values are still to be multiplied by, before and after the sum: float16 holds p * scale well then.
    FOLD: tl.constexpr = 128.0 if INT8 else 256.0
    UNFOLD: tl.constexpr = 1.0 / 128.0 if INT8 else 1.0
    KEY_FOLD: tl.constexpr = 256.0 if PACKED_K and not INT8 else 1.0
    o_g = tl.arange(0, _BM)
    o_t = tl.arange(0, TILE)
    o_d = tl.arange(0, DP)
    o_w = tl.arange(0, DQ)
    m_g = o_g < G
    m_d = o_d[None, :] < D  # [1, DP]
    m_w = o_w[None, :] < D // 4  # [1, DQ]
    num_heads = num_kv_heads * G
    # Scores are exponents of two; under a cap first those of tanh(x) = 1 - 2 / (e^2x + 1), which overflow takes to 1.
    score_scale = scale * LOG2_E
    if HAS_SOFTCAP:
        score_scale = score_scale * 2.0 / softcap

    for i_work in range(tl.program_id(0), tl.load(counts_ptr) * num_kv_heads, tl.num_programs(0)):
        i_item = i_work // num_kv_heads
        i_h = i_work % num_kv_heads
        row = tl.load(items_ptr + i_item * 4)
        begin = tl.load(items_ptr + i_item * 4 + 1)
        end = tl.load(items_ptr + i_item * 4 + 2)
        partial = tl.load(items_ptr + i_item * 4 + 3)
        table_row_ptr = table_ptr + tl.load(slots_ptr + row).to(tl.int64) * stride_table
        token = tl.load(query_start_ptr + row).to(tl.int64)
        if HAS_WINDOW:
            begin = tl.maximum(begin, tl.load(seq_lens_ptr + row) - window)
        last_block = (end - 1) // BLOCK_SIZE
        head_at = layer_units + i_h * head_units

        q_head_ptr = q_ptr + i_h * stride_qh + token * stride_qt
        o_q = (o_g * stride_qg)[:, None] + o_d[None, :]
        b_q = tl.load(q_head_ptr + o_q, mask=m_g[:, None] & m_d, other=0.0)  # [BM, DP]
        if QUANTISED:
            b_q = b_q.to(tl.float32).to(tl.float16)
        if PACKED_K:
            b_q02, b_q13 = tl.split(b_q.reshape(_BM, DQ, 2, 2))
            b_q0, b_q2 = tl.split(b_q02)  # [BM, DQ]
            b_q1, b_q3 = tl.split(b_q13)

        b_max = tl.full([_BM], float("-inf"), tl.float32)
        b_sum = tl.zeros([_BM], tl.float32)
        if QUANTISED:
            b_a0 = tl.zeros([_BM, DQ], tl.float32)
            b_a1 = tl.zeros([_BM, DQ], tl.float32)
            b_a2 = tl.zeros([_BM, DQ], tl.float32)
            b_a3 = tl.zeros([_BM, DQ], tl.float32)
        else:
            b_acc = tl.zeros([_BM, DP], tl.float32)
        start = tl.where(begin < end, begin // ALIGN * ALIGN, end)
        for first in tl.range(start, end, TILE):
            first = tl.multiple_of(first, ALIGN)
            o_key = first + o_t  # [TILE]
            if GATHER:
                o_block = tl.minimum(o_key // BLOCK_SIZE, last_block)
                o_slot = o_key % BLOCK_SIZE
            else:
                o_block = first // BLOCK_SIZE
                o_slot = tl.multiple_of(first % BLOCK_SIZE, ALIGN) + o_t
            b_unit = tl.load(table_row_ptr + o_block).to(tl.int64) * GRANULE_UNITS + head_at
            if GATHER:
                b_unit = tl.max_constancy(
                    b_unit, BLOCK_SIZE
                )  # so that scales are read more than one at a time

            if PACKED_K:
                b_kp = _rows_at(keys_ptr, b_unit, o_slot, o_w, KEY_BYTES, TOKEN_STRIDE, GATHER)
                b_k0, b_k1, b_k2, b_k3 = quarters(tl.load(b_kp, mask=m_w, other=0), not INT8)  # [TILE, DQ]
                b_s = tl.zeros([_BM, TILE], tl.float32)
                b_s = _dot(b_q0, tl.trans(b_k0), b_s, UPCAST)
                b_s = _dot(b_q1, tl.trans(b_k1), b_s, UPCAST)
                b_s = _dot(b_q2, tl.trans(b_k2), b_s, UPCAST)
                b_s = _dot(b_q3, tl.trans(b_k3), b_s, UPCAST)
            else:
                b_kp = _rows_at(keys_ptr, b_unit, o_slot, o_d, KEY_BYTES, TOKEN_STRIDE, GATHER)
                b_k = tl.load(b_kp, mask=m_d, other=0.0)  # [TILE, DP]
                if QUANTISED:
                    b_k = b_k.to(tl.float16)
                b_s = _dot(b_q, tl.trans(b_k), tl.zeros([_BM, TILE], tl.float32), UPCAST)
            if QUANTISED:
                b_sp = scales_ptr + (b_unit + scale_units) * 4 + o_slot  # [TILE]
                b_s = b_s * (tl.load(b_sp) * (score_scale * KEY_FOLD))[None, :]
            else:
                b_s = b_s * score_scale
            if HAS_SOFTCAP:
                b_s = softcap * LOG2_E * (1.0 - 2.0 / (tl.exp2(b_s) + 1.0))
            m_key = o_key < end
            b_s = tl.where(m_key[None, :], b_s, float("-inf"))  # [BM, TILE]
            if HAS_WINDOW:
                b_s = tl.where((o_key >= begin)[None, :], b_s, float("-inf"))

            # Each tile holds a key that is seen, so the maximum is finite and nothing is NaN.
            b_p, b_decay, b_max, b_sum = softmax_step(b_s, b_max, b_sum, MASKED=False)
            if QUANTISED:
                b_vp = _rows_at(values_ptr, b_unit + kv_units, o_slot, o_w, 4, TOKEN_STRIDE, GATHER)
                b_v0, b_v1, b_v2, b_v3 = quarters(tl.load(b_vp, mask=m_w, other=0), not INT8)  # [TILE, DQ]
                b_vs = tl.where(m_key, tl.load(b_sp + BLOCK_SIZE), 0.0) * FOLD  # what is not seen may be NaN
                b_p = (b_p * b_vs[None, :]).to(tl.float16)
                b_a0 = _dot(b_p, b_v0, b_a0 * b_decay[:, None], UPCAST)
                b_a1 = _dot(b_p, b_v1, b_a1 * b_decay[:, None], UPCAST)
                b_a2 = _dot(b_p, b_v2, b_a2 * b_decay[:, None], UPCAST)
                b_a3 = _dot(b_p, b_v3, b_a3 * b_decay[:, None], UPCAST)
            else:
                b_vp = _rows_at(values_ptr, b_unit + kv_units, o_slot, o_d, VALUE_BYTES, TOKEN_STRIDE, GATHER)
                b_v = tl.load(b_vp, mask=m_key[:, None] & m_d, other=0.0)  # [TILE, DP]
                if not UPCAST:
                    b_p = b_p.to(b_v.dtype)
                b_acc = _dot(b_p, b_v, b_acc * b_decay[:, None], UPCAST)

        if QUANTISED:
            b_acc = tl.join(tl.join(b_a0, b_a2), tl.join(b_a1, b_a3)).reshape(_BM, DP) * UNFOLD
        b_acc = shares(b_acc, b_sum)
        b_lse = log_sum(b_max, b_sum)
        o_head = i_h * G + o_g
        m_out = m_g[:, None] & m_d
        if partial < 0:
            o_out = (token * num_heads + o_head)[:, None] * D + o_d[None, :]
            tl.store(out_ptr + o_out, b_acc.to(out_ptr.dtype.element_ty), mask=m_out)
            if lse_ptr is not None:
                tl.store(lse_ptr + token * num_heads + o_head, b_lse, mask=m_g)
        else:
            o_part = partial.to(tl.int64) * num_heads + o_head
            tl.store(acc_ptr + o_part[:, None] * D + o_d[None, :], b_acc, mask=m_out)
            tl.store(partial_lse_ptr + o_part, b_lse, mask=m_g)


def paged_decode(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    out: torch.Tensor,
    *,
    scale: float,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    lse: torch.Tensor | None = None,
) -> None:
    """Attends the rows that have items in `plan`; all others' part of `out` and `lse` is left as it is.

    q [Hkv, T, G, D] (last dimension contiguous) in the arena's dtype, or any float where that
    is quantised, rounded to float16 then; arena
    uint8; block_table [S, C], slots [R], query_start [R + 1], seq_lens [R] int32; out [T, Hkv * G, D] of any float
    dtype; lse float32 [T, Hkv * G], natural logarithm. `plan` was made with the same window, or with none. A row
    that sees no key gives 0 and an lse of -inf. Grid: min(max_items * Hkv, 16 per multiprocessor) programs.
    """
    rows = seq_lens.shape[0] if seq_lens.dim() else 0
    _check_arguments(q, arena, layout, block_table, slots, query_start, seq_lens, plan, workspace, out, lse)
    _check_numbers(layout, scale, layer_offset, window, softcap)
    max_items = plan.items.shape[0]
    if not rows or not max_items:
        return
    if is_seen(q.device):
        read = query_start, q.shape[1], seq_lens, slots, block_table, layout, arena, layer_offset
        check_attended(planned_rows(plan, seq_lens), *read, window)
    arch = arch_of(q.device)
    kv_heads, _, group, head_dim = q.shape
    tiles = decode_tiles(arch, head_dim, layout.block_size, layout.dtype, group)
    key_dtype, value_dtype = layout.dtype, layout.dtype
    if layout.is_quantised:
        value_dtype = torch.int32
        key_dtype = layout.dtype if layout.dtype is not torch.int8 and arch.has_fp8 else torch.int32
    with launch_guard():
        _paged_decode_kernel[(min(max_items * kv_heads, PROGRAMS_PER_SM * arch.num_sms),)](
            q,
            arena.view(key_dtype),
            arena.view(value_dtype),
            arena.view(torch.float32) if layout.is_quantised else None,
            block_table,
            slots,
            query_start,
            seq_lens,
            plan.items,
            plan.counts,
            workspace.acc,
            workspace.lse,
            out,
            lse,
            *q.stride()[:3],
            block_table.stride(0),
            layer_offset // _UNIT,
            layout.head_stride // _UNIT,
            layout.kv_stride // _UNIT,
            layout.scale_offset // _UNIT,
            kv_heads,
            window,
            scale,
            softcap,
            G=group,
            D=head_dim,
            DP=_padded(head_dim, layout),
            BLOCK_SIZE=layout.block_size,
            TOKEN_STRIDE=layout.token_stride,
            GRANULE_UNITS=GRANULE_BYTES // _UNIT,
            KEY_BYTES=key_dtype.itemsize,
            VALUE_BYTES=value_dtype.itemsize,
            QUANTISED=layout.is_quantised,
            INT8=layout.dtype is torch.int8,
            HAS_WINDOW=window > 0,
            HAS_SOFTCAP=softcap > 0,
            UPCAST=INTERPRETED and layout.dtype is torch.bfloat16,
            TILE=tiles.tile,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **({} if tiles.max_registers is None else {"maxnreg": tiles.max_registers}),
        )
    combine_partials(plan, workspace, query_start, out, lse=lse)


def _padded(head_dim: int, layout: KvLayout) -> int:
    """The next power of two; a matrix product takes at least 16 elements, and those of 8 bits come as four."""
    return max(1 << (head_dim - 1).bit_length(), 64 if layout.is_quantised else 16)


def _check_arguments(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    device = q.device
    accepted = FLOATS if layout.is_quantised else layout.dtype
    check_tensor("q", q, accepted, (layout.num_kv_heads, None, None, layout.head_dim), contiguous=False)
    kv_heads, tokens, group, head_dim = q.shape
    check("group", group, f"1 to {MAX_GROUP} query heads per kv head", ok=1 <= group <= MAX_GROUP)
    heads = kv_heads * group
    check_tensor("arena", arena, torch.uint8, (None,), device)
    check_tensor("block_table", block_table, torch.int32, (None, None), device, contiguous=False)
    check_rows(query_start, seq_lens, slots, device)
    check_plan(plan, device)
    rows, most = seq_lens.shape[0], plan.row_items.shape[0] - 1
    check("seq_lens", f"{rows} rows", f"at most the plan's {most} rows", ok=rows <= most)
    check_workspace(workspace, plan.items.shape[0], heads, head_dim, device)
    check_tensor("out", out, FLOATS, (tokens, heads, head_dim), device)
    if lse is not None:
        check_tensor("lse", lse, torch.float32, (tokens, heads), device)
    aligned = arena.data_ptr() % _UNIT == 0 and arena.shape[0] % _UNIT == 0
    check("arena", "another", f"aligned to {_UNIT} bytes, and so its size", ok=aligned)


def _check_numbers(layout: KvLayout, scale: float, layer_offset: int, window: int, softcap: float) -> None:
    for name in ("head_stride", "kv_stride", "token_stride", "scale_offset"):
        value = getattr(layout, name)
        check(f"layout.{name}", value, f"a multiple of {_UNIT} bytes", ok=value % _UNIT == 0)
    ok = layer_offset >= 0 and layer_offset % _UNIT == 0
    check("layer_offset", layer_offset, f"a multiple of {_UNIT} bytes", ok=ok)
    check("scale", scale, "positive and finite", ok=0 < scale < math.inf)
    check("window", window, "0 (none) or more", ok=window >= 0)
    check("softcap", softcap, "0 (none) or more, and finite", ok=0 <= softcap < math.inf)
