"""From the projection of a step's tokens to what attention reads: norm, rotation, keys and values in the arena."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ._checks import FLOATS, check, check_tensor
from ._convert import e4m3_bits, int8_bits, rounded
from ._launch import INTERPRETED, launch_guard
from ._values import check_places, is_seen
from .arch import Arch, arch_of
from .layout import GRANULE_BYTES, QUANTISED_MAX, KvLayout


@triton.jit
def _load_head(
    ptr, m_tokens, HALF: tl.constexpr, HALF_P: tl.constexpr, REST: tl.constexpr, REST_P: tl.constexpr
):
    """A head of some tokens in float32: elements [0, HALF), [HALF, 2 HALF) and the REST, which may be none."""
    o_half = tl.arange(0, HALF_P)
    m_half = m_tokens[:, None] & (o_half < HALF)[None, :]
    b_first = tl.load(ptr[:, None] + o_half[None, :], mask=m_half, other=0.0).to(tl.float32)  # [BT, HALF_P]
    b_second = tl.load(ptr[:, None] + (HALF + o_half)[None, :], mask=m_half, other=0.0).to(tl.float32)
    b_rest = b_first
    if REST > 0:
        o_rest = tl.arange(0, REST_P)
        m_rest = m_tokens[:, None] & (o_rest < REST)[None, :]
        b_rest = tl.load(ptr[:, None] + (2 * HALF + o_rest)[None, :], mask=m_rest, other=0.0).to(tl.float32)
    return b_first, b_second, b_rest


@triton.jit
def _norm_head(
    b_first, b_second, b_rest, weight_ptr, eps,
    HALF: tl.constexpr, HALF_P: tl.constexpr, REST: tl.constexpr, REST_P: tl.constexpr,
):  # fmt: skip
    squares = tl.sum(b_first * b_first, 1) + tl.sum(b_second * b_second, 1)  # [BT]
    if REST > 0:
        squares += tl.sum(b_rest * b_rest, 1)
    factor = tl.rsqrt(squares / (2 * HALF + REST) + eps)[:, None]
    o_half = tl.arange(0, HALF_P)
    m_half = o_half < HALF
    b_first *= factor * tl.load(weight_ptr + o_half, mask=m_half, other=0.0)[None, :]
    b_second *= factor * tl.load(weight_ptr + HALF + o_half, mask=m_half, other=0.0)[None, :]
    if REST > 0:
        o_rest = tl.arange(0, REST_P)
        b_rest *= factor * tl.load(weight_ptr + 2 * HALF + o_rest, mask=o_rest < REST, other=0.0)[None, :]
    return b_first, b_second, b_rest


@triton.jit
def _encode(b_x, scale, STORED: tl.constexpr, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """What is stored of a tile, given its rows' scales; bytes where it is quantised."""
    if STORED == "plain":
        b_stored = rounded(b_x, dtype, UPCAST)
    else:
        most: tl.constexpr = 448.0 if STORED == "fp8" else 127.0
        b_scaled = tl.math.div_rn(b_x, scale[:, None] + tl.zeros_like(b_x))
        b_scaled = tl.minimum(tl.maximum(b_scaled, -most), most)
        b_stored = e4m3_bits(b_scaled) if STORED == "fp8" else int8_bits(b_scaled)
    return b_stored


@triton.jit
def _store_head(
    ptr, m_tokens, b_first, b_second, b_rest, scale, STORED: tl.constexpr, UPCAST: tl.constexpr,
    HALF: tl.constexpr, HALF_P: tl.constexpr, REST: tl.constexpr, REST_P: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = ptr.dtype.element_ty
    o_half = tl.arange(0, HALF_P)
    m_half = m_tokens[:, None] & (o_half < HALF)[None, :]
    tl.store(ptr[:, None] + o_half[None, :], _encode(b_first, scale, STORED, dtype, UPCAST), mask=m_half)
    tl.store(
        ptr[:, None] + (HALF + o_half)[None, :], _encode(b_second, scale, STORED, dtype, UPCAST), mask=m_half
    )
    if REST > 0:
        o_rest = tl.arange(0, REST_P)
        m_rest = m_tokens[:, None] & (o_rest < REST)[None, :]
        b_stored = _encode(b_rest, scale, STORED, dtype, UPCAST)
        tl.store(ptr[:, None] + (2 * HALF + o_rest)[None, :], b_stored, mask=m_rest)


@triton.jit(do_not_specialize=["tokens", "heads_per_program"])
def _qkv_post_kernel(
    qkv_ptr, cos_sin_ptr, positions_ptr, entries_ptr, q_norm_ptr, k_norm_ptr, q_out_ptr, arena_ptr, scales_ptr,
    tokens, heads_per_program, eps,
    stride_qkv: tl.int64, stride_q_head: tl.int64, stride_q_token: tl.int64, stride_q_group: tl.int64,
    layer_offset: tl.int64, head_stride: tl.int64, kv_stride: tl.int64, token_stride: tl.int64,
    scale_layer_offset: tl.int64, scale_head_stride: tl.int64,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, ROT: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    STORED: tl.constexpr, GRANULE: tl.constexpr, GRANULE_FLOATS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    HALF: tl.constexpr, HALF_P: tl.constexpr, REST: tl.constexpr, REST_P: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i_heads, i_block = tl.program_id(0), tl.program_id(1)
    o_tokens = i_block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    m_tokens = o_tokens < tokens
    entries = tl.load(entries_ptr + o_tokens, mask=m_tokens, other=-1)  # [BT]
    m_live = m_tokens & (entries >= 0)
    positions = tl.load(positions_ptr + o_tokens, mask=m_live, other=0)
    slots = (positions % BLOCK_SIZE).to(tl.int64)
    places = entries.to(tl.int64) * GRANULE + layer_offset + slots * token_stride
    rows = o_tokens.to(tl.int64)
    if ROT > 0:
        o_half = tl.arange(0, HALF_P)
        m_half = m_live[:, None] & (o_half < HALF)[None, :]
        angle_ptr = cos_sin_ptr + (positions.to(tl.int64) * ROT)[:, None] + o_half[None, :]
        b_cos = tl.load(angle_ptr, mask=m_half, other=0.0)  # [BT, HALF_P]
        b_sin = tl.load(angle_ptr + HALF, mask=m_half, other=0.0)
    first_head = i_heads * heads_per_program
    for i_head in range(first_head, tl.minimum(first_head + heads_per_program, HQ + 2 * HKV)):
        head_ptr = qkv_ptr + rows * stride_qkv + i_head * D
        b_first, b_second, b_rest = _load_head(head_ptr, m_live, HALF, HALF_P, REST, REST_P)
        if i_head < HQ:
            if q_norm_ptr is not None:
                b_first, b_second, b_rest = _norm_head(
                    b_first, b_second, b_rest, q_norm_ptr, eps, HALF, HALF_P, REST, REST_P
                )
        elif i_head < HQ + HKV:  # noqa: SIM102 - whether there is a norm is known when this is compiled
            if k_norm_ptr is not None:
                b_first, b_second, b_rest = _norm_head(
                    b_first, b_second, b_rest, k_norm_ptr, eps, HALF, HALF_P, REST, REST_P
                )
        if ROT > 0:  # noqa: SIM102 - as well
            if i_head < HQ + HKV:
                b_turned = b_first * b_cos - b_second * b_sin
                b_second = b_second * b_cos + b_first * b_sin
                b_first = b_turned
        if i_head < HQ:
            i_group, i_kv_head = i_head % (HQ // HKV), i_head // (HQ // HKV)
            out_ptr = q_out_ptr + i_kv_head * stride_q_head + i_group * stride_q_group + rows * stride_q_token
            zero = tl.zeros_like(entries).to(tl.float32)
            b_first = tl.where(m_live[:, None], b_first, 0.0)
            b_second = tl.where(m_live[:, None], b_second, 0.0)
            b_rest = tl.where(m_live[:, None], b_rest, 0.0)
            _store_head(
                out_ptr,
                m_tokens,
                b_first,
                b_second,
                b_rest,
                zero,
                "plain",
                UPCAST,
                HALF,
                HALF_P,
                REST,
                REST_P,
            )
        else:
            is_value, i_kv_head = (i_head - HQ) // HKV, (i_head - HQ) % HKV
            scale = tl.zeros_like(entries).to(tl.float32)
            if STORED != "plain":
                peak = tl.maximum(tl.max(tl.abs(b_first), 1), tl.max(tl.abs(b_second), 1))  # [BT]
                if REST > 0:
                    peak = tl.maximum(peak, tl.max(tl.abs(b_rest), 1))
                scale = tl.where(peak == 0, 1.0, tl.math.div_rn(peak, 448.0 if STORED == "fp8" else 127.0))
                scale_ptr = scales_ptr + entries.to(tl.int64) * GRANULE_FLOATS + scale_layer_offset
                scale_ptr += i_kv_head * scale_head_stride + is_value * BLOCK_SIZE + slots
                tl.store(scale_ptr, scale, mask=m_live)
            kv_ptr = arena_ptr + places + i_kv_head * head_stride + is_value * kv_stride
            _store_head(
                kv_ptr, m_live, b_first, b_second, b_rest, scale, STORED, UPCAST, HALF, HALF_P, REST, REST_P
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How `qkv_post` is cut: one program takes some heads of `block_tokens` tokens, one head after the other."""

    block_tokens: int
    heads_per_program: int
    num_warps: int


def qkv_post_tiles(*, tokens: int, heads: int, half: int, itemsize: int, arch: Arch) -> Tiles:
    """The tiles for `tokens` tokens of q, k and v heads whose halves have `half` elements.

    Every thread has 16 bytes of each half at a time. Few tokens are cut finely, so that their latency is that of one
    head; with many a program keeps its cosines and sines for up to eight heads.
    """
    num_warps = 4 if tokens >= 512 else 1
    block_tokens = max(1, num_warps * arch.lanes * (16 // itemsize) // triton.next_power_of_2(half))
    programs = -(-tokens // block_tokens) * heads
    return Tiles(
        block_tokens=block_tokens,
        heads_per_program=min(8, max(1, programs // (16 * arch.num_sms))),
        num_warps=num_warps,
    )


def qkv_post(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    entries: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    q_out: torch.Tensor,
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    layer_offset: int = 0,
) -> None:
    """Norms and rotates queries and keys, writes keys and values to the arena and queries to q_out.

    qkv is [T, Hq + 2 Hkv, D] in bf16, fp16 or fp32; cos_sin float32 [P, rot], rot <= D even: rot / 2 cosines, then as
    many sines; positions int32 [T], below P; entries int32 [T]: the block-table entry of each token's block, -1 for
    padding, of which nothing is written and q_out is zero. q_norm and k_norm, float32 [D], scale heads of a root mean
    square of 1. arena uint8, layer_offset in bytes. q_out [Hkv, T, Hq / Hkv, D] in qkv's dtype, or any of the three.

        x = qkv[t, h];  x *= norm * rsqrt(mean(x^2) + eps);  x[:rot] = x[:rot] cos + rotate_half(x[:rot]) sin

    All of it in float32; the arena holds it rounded to nearest even, or quantised as `reference` says. Grid:
    (heads / heads_per_program, tokens / block_tokens). Raises ValueError for tensors that do not fit each other.
    """
    heads = _check(qkv, cos_sin, positions, entries, arena, layout, q_out, q_norm, k_norm, layer_offset)
    tokens, dim, rot = qkv.shape[0], layout.head_dim, cos_sin.shape[1]
    if tokens == 0:
        return
    half = rot // 2 if rot else dim // 2
    tiles = qkv_post_tiles(
        tokens=tokens,
        heads=heads,
        half=half,
        itemsize=qkv.dtype.itemsize,
        arch=arch_of(qkv.device),
    )
    quantised, size = layout.is_quantised, layout.dtype.itemsize
    kinds = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}
    grid = (-(-heads // tiles.heads_per_program), -(-tokens // tiles.block_tokens))
    with launch_guard():
        _qkv_post_kernel[grid](
            qkv, cos_sin, positions, entries, q_norm, k_norm, q_out,
            arena if quantised else arena.view(layout.dtype),
            arena.view(torch.float32) if quantised else None,
            tokens, tiles.heads_per_program, eps,
            qkv.stride(0), q_out.stride(0), q_out.stride(1), q_out.stride(2),
            layer_offset // size, layout.head_stride // size, layout.kv_stride // size, layout.token_stride // size,
            (layer_offset + layout.scale_offset) // 4, layout.head_stride // 4,
            HQ=heads - 2 * layout.num_kv_heads, HKV=layout.num_kv_heads, D=dim, ROT=rot,
            BLOCK_SIZE=layout.block_size, STORED=kinds.get(layout.dtype, "plain"), GRANULE=GRANULE_BYTES // size,
            GRANULE_FLOATS=GRANULE_BYTES // 4,
            BLOCK_TOKENS=tiles.block_tokens, HALF=half, HALF_P=triton.next_power_of_2(half),
            REST=dim - 2 * half, REST_P=triton.next_power_of_2(dim - 2 * half), UPCAST=INTERPRETED,
            # Products are rounded before they are added, as the specification does.
            num_warps=tiles.num_warps, enable_fp_fusion=False,
        )  # fmt: skip


def _check(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    entries: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    q_out: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    layer_offset: int,
) -> int:
    """Raises ValueError for what does not fit; returns the number of heads of qkv."""
    dim, kv_heads, device = layout.head_dim, layout.num_kv_heads, qkv.device
    check_tensor("qkv", qkv, FLOATS, (None, None, dim), contiguous=False)
    tokens, heads = int(qkv.shape[0]), int(qkv.shape[1])
    groups = heads > 2 * kv_heads and heads % kv_heads == 0
    check("heads of qkv", heads, f"a multiple of {kv_heads} from {3 * kv_heads}", ok=groups)
    check("stride of qkv's heads", qkv.stride(1), f"{dim}", ok=qkv.stride(1) == dim)
    check("head_dim", dim, "an even number up to 256", ok=dim % 2 == 0 and dim <= 256)
    check_tensor("cos_sin", cos_sin, torch.float32, (None, None), device)
    rot = cos_sin.shape[1]
    check("width of cos_sin", rot, f"an even number up to {dim}", ok=rot % 2 == 0 and rot <= dim)
    check_tensor("positions", positions, torch.int32, (tokens,), device)
    check_tensor("entries", entries, torch.int32, (tokens,), device)
    check_tensor("arena", arena, torch.uint8, (None,), device)
    kinds = (*FLOATS, *QUANTISED_MAX)
    check("layout.dtype", layout.dtype, f"one of {kinds}", ok=layout.dtype in kinds)
    size = 4 if layout.is_quantised else layout.dtype.itemsize
    fits = layer_offset >= 0 and layer_offset % size == 0
    check("layer_offset", layer_offset, f"a multiple of {size} from 0", ok=fits)
    group = heads // kv_heads - 2
    check_tensor("q_out", q_out, FLOATS, (kv_heads, tokens, group, dim), device, contiguous=False)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check_tensor(name, weight, torch.float32, (dim,), device)
    if is_seen(device):
        check_places(entries, positions, cos_sin.shape[0], layout, arena, layer_offset)
    return heads
