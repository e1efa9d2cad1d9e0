"""Norm, rotation, and the writing of keys and values."""

from __future__ import annotations

import torch

from .._checks import require_tensor
from ..layout import QUANTISED_MAX, KvLayout
from .attention import PagedBatch


def write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    *,
    layer_offset: int = 0,
) -> None:
    """Writes the tokens' keys and values, each [tokens, kv_heads, head_dim], to their places in the arena."""
    shape = (batch.tokens, layout.num_kv_heads, layout.head_dim)
    require_tensor("keys", keys, None, shape)
    require_tensor("values", values, None, shape)
    for row in range(batch.seq_lens.shape[0]):
        entries = batch.block_table[int(batch.slots[row])]
        for token, position in enumerate(batch.positions(row), int(batch.query_start[row])):
            block, offset = divmod(position, layout.block_size)
            place = int(entries[block]), layer_offset
            both = torch.stack((keys[token], values[token]), 1)  # [kv_heads, K|V, head_dim]
            stored = both.to(layout.dtype)
            if layout.is_quantised:
                stored, scales = quantise(both, layout.dtype)
                layout.scales(arena, *place)[:, :, offset] = scales
            layout.block(arena, *place)[:, :, offset] = stored


def quantise(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., n] as elements of a quantised dtype and their float32 scales [...]."""
    most = QUANTISED_MAX[dtype]
    peak = x.float().abs().amax(-1)
    scales = torch.where(peak == 0, 1.0, peak / most)
    scaled = (x.float() / scales[..., None]).clamp(-most, most)
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), scales


def rope(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotates the first rot_dim elements of each head of x, [tokens, heads, head_dim], by rotate-half.

    cos_sin is [positions, rot_dim]: rot_dim / 2 cosines, then as many sines.
    """
    rot_dim = cos_sin.shape[1]
    if rot_dim % 2 or rot_dim > x.shape[2]:
        raise ValueError(f"cos_sin must have an even width up to head_dim {x.shape[2]}, got {rot_dim}")
    require_tensor("positions", positions, torch.int32, (x.shape[0],))
    half = rot_dim // 2
    cos, sin = cos_sin[positions.long(), None].split(half, -1) if half else (cos_sin, cos_sin)
    first, second, rest = x.split((half, half, x.shape[2] - rot_dim), -1)
    if not half:
        return x.clone()
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x scaled to a mean square of 1 along its last dimension, times weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rope_kv_write(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    *,
    q_heads: int,
    layer_offset: int = 0,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Splits qkv, [tokens, q_heads + 2 kv_heads, head_dim], norms (if asked for) and rotates queries and keys,
    writes keys and values to the arena, and returns the queries, [tokens, q_heads, head_dim], in its dtype, or in
    qkv's where that is quantised."""
    kv_heads = layout.num_kv_heads
    require_tensor("qkv", qkv, None, (batch.tokens, q_heads + 2 * kv_heads, layout.head_dim))
    q, k, v = qkv.split((q_heads, kv_heads, kv_heads), 1)
    q = q if q_norm is None else rms_norm(q, q_norm, eps)
    k = k if k_norm is None else rms_norm(k, k_norm, eps)
    write_kv(rope(k, cos_sin, positions), v, arena, layout, batch, layer_offset=layer_offset)
    return rope(q, cos_sin, positions).to(qkv.dtype if layout.is_quantised else layout.dtype)
