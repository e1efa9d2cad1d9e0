"""Rotation, and the writing of keys and values."""

from __future__ import annotations

import torch

from .._checks import check_tensor
from ..layout import GRANULE_BYTES, QUANTISED_MAX, KvLayout
from .attention import PagedBatch
from .norms import rms_norm


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
    check_tensor("keys", keys, keys.dtype, shape, contiguous=False)
    check_tensor("values", values, values.dtype, shape, contiguous=False)
    rows = range(batch.seq_lens.shape[0])
    positions = torch.tensor([p for row in rows for p in batch.positions(row)], dtype=torch.int64)
    lines = torch.repeat_interleave(batch.slots.long(), batch.query_start.diff().long())
    entries = batch.block_table[lines, positions // layout.block_size]
    _store(keys, values, arena, layout, entries, positions, layer_offset)


def _store(
    keys: torch.Tensor,
    values: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    entries: torch.Tensor,
    positions: torch.Tensor,
    layer_offset: int,
) -> None:
    """Writes the tokens' keys and values at positions of blocks that start at entries."""
    both = torch.stack((keys, values), 2)  # [tokens, kv_heads, K|V, head_dim]
    starts = (entries.long() * GRANULE_BYTES + layer_offset)[:, None, None]
    starts = starts + (torch.arange(layout.num_kv_heads) * layout.head_stride)[None, :, None]  # of heads
    slots, which = (positions.long() % layout.block_size)[:, None, None], torch.arange(2)[None, None]
    stored = both.to(layout.dtype)
    if layout.is_quantised:
        stored, scales = quantise(both, layout.dtype)
        places = starts + layout.scale_offset + 4 * (which * layout.block_size + slots)
        arena.view(torch.float32)[places // 4] = scales
    size = layout.dtype.itemsize
    places = (starts + which * layout.kv_stride + slots * layout.token_stride) // size
    # Bytes, because torch has no indexed writes of float8.
    flat = arena.view(layout.dtype if size > 1 else torch.uint8)
    flat[places[..., None] + torch.arange(layout.head_dim)] = stored if size > 1 else stored.view(torch.uint8)


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
    check_tensor("positions", positions, torch.int32, (x.shape[0],))
    half = rot_dim // 2
    cos, sin = cos_sin[positions.long(), None].split(half, -1) if half else (cos_sin, cos_sin)
    first, second, rest = x.split((half, half, x.shape[2] - rot_dim), -1)
    if not half:
        return x.clone()
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


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
    """Norms (if asked for) and rotates the queries and keys of qkv, [T, q heads + 2 kv_heads, head_dim], in float32;
    writes keys and values to the arena at positions of the blocks at entries, and the queries to q_out, [kv_heads, T,
    group, head_dim]. An entry of -1 is padding: nothing is written and its queries are zero."""
    kv_heads, live = layout.num_kv_heads, entries >= 0
    q_out[:, ~live] = 0
    q, k, v = qkv[live].float().split((qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads), 1)
    q = q if q_norm is None else rms_norm(q, q_norm, eps)
    k = k if k_norm is None else rms_norm(k, k_norm, eps)
    q, k = rope(q, cos_sin, positions[live]), rope(k, cos_sin, positions[live])
    _store(k, v, arena, layout, entries[live], positions[live], layer_offset)
    q_out[:, live] = q.unflatten(1, (kv_heads, -1)).transpose(0, 1).to(q_out.dtype)


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
    shape = batch.tokens, q_heads + 2 * kv_heads, layout.head_dim
    check_tensor("qkv", qkv, qkv.dtype, shape, contiguous=False)
    q, k, v = qkv.split((q_heads, kv_heads, kv_heads), 1)
    q = q if q_norm is None else rms_norm(q, q_norm, eps)
    k = k if k_norm is None else rms_norm(k, k_norm, eps)
    write_kv(rope(k, cos_sin, positions), v, arena, layout, batch, layer_offset=layer_offset)
    return rope(q, cos_sin, positions).to(qkv.dtype if layout.is_quantised else layout.dtype)
