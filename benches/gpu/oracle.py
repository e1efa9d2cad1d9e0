"""What kernels must compute, in float64 and without a loop over tokens: fast enough for a GPU's sizes.

It shares nothing with `airi.kernels.reference`, so that each checks the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from airi.kernels.layout import GRANULE_BYTES, KvLayout
from benches.gpu.pool import Batch, Heads

RELATIVE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""||out - expected|| / ||expected|| on a device, by the dtype of queries and outputs."""
RELATIVE_INTERPRETED = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""Triton's interpreter truncates to bfloat16."""
RELATIVE_QUANTISED = 1e-2
RELATIVE_QUANTISED_INTERPRETED = 5e-3
LSE = 1e-3
LSE_INTERPRETED = 1e-4
ELEMENT = (1.5e-2, 1e-2)
"""Absolute and relative, of each bfloat16 element."""
_QUERIES_AT_ONCE = 256


def tolerance(dtype: torch.dtype, layout: KvLayout | None = None, *, interpreted: bool) -> float:
    """How far results may be from float64, by what computes them."""
    table = RELATIVE_INTERPRETED if interpreted else RELATIVE
    if layout is None or not layout.is_quantised:
        return table[dtype]
    return max(table[dtype], RELATIVE_QUANTISED_INTERPRETED if interpreted else RELATIVE_QUANTISED)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected||; infinite where `out` is not finite."""
    if not bool(torch.isfinite(out).all()):
        return float("inf")
    norm = expected.double().norm().clamp_min(1e-30)
    return float((out.double() - expected.double()).norm() / norm)


def elements_off(out: torch.Tensor, expected: torch.Tensor) -> int:
    """How many elements are farther from what is expected than `ELEMENT` allows."""
    atol, rtol = ELEMENT
    return int(((out.double() - expected).abs() > atol + rtol * expected.abs()).sum())


def elements(arena: torch.Tensor, dtype: torch.dtype, places: torch.Tensor) -> torch.Tensor:
    """What lies at byte offsets of the arena, as float64; not every device gathers 8-bit floats as such."""
    if dtype.itemsize == 1:
        return arena[places].view(dtype).double()
    return arena.view(dtype)[places // dtype.itemsize].double()


def stored(
    arena: torch.Tensor, layout: KvLayout, entries: torch.Tensor, keys: int, layer_offset: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A sequence's first `keys` keys and values, each [kv_heads, keys, head_dim] float64."""
    token = torch.arange(keys, device=arena.device)
    block = entries.to(arena.device).long()[token // layout.block_size] * GRANULE_BYTES + layer_offset
    head = torch.arange(layout.num_kv_heads, device=arena.device)[:, None] * layout.head_stride
    dim = torch.arange(layout.head_dim, device=arena.device)
    found = []
    for kv in (0, 1):
        place = block + head + kv * layout.kv_stride + (token % layout.block_size) * layout.token_stride
        values = elements(arena, layout.dtype, place[..., None] + dim * layout.dtype.itemsize)
        if layout.is_quantised:
            scale = (
                block + head + layout.scale_offset + 4 * (kv * layout.block_size + token % layout.block_size)
            )
            values = values * elements(arena, torch.float32, scale)[..., None]
        found.append(values)
    return found[0], found[1]


def attention_of_row(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [kv_heads, n, group, dim] float64 at the last n positions; outputs of that shape, log-sum-exps [.., group]."""
    n, total = q.shape[1], keys.shape[1]
    key = torch.arange(total, device=q.device)
    outs, sums = [], []
    for begin in range(0, n, _QUERIES_AT_ONCE):
        piece = q[:, begin : begin + _QUERIES_AT_ONCE]
        position = torch.arange(begin, begin + piece.shape[1], device=q.device)[:, None] + total - n
        seen = key <= position
        if window:
            seen &= key > position - window
        scores = torch.einsum("hngd,hkd->hgnk", piece, keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen, float("-inf"))
        outs.append(torch.einsum("hgnk,hkd->hngd", torch.softmax(scores, -1), values))
        sums.append(torch.logsumexp(scores, -1).transpose(1, 2))
    return torch.cat(outs, 1), torch.cat(sums, 1)


def attention(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    batch: Batch,
    *,
    scale: float,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    rows: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs [n, q_heads, dim] and log-sum-exps [n, q_heads] of some rows' tokens, and which tokens those are."""
    starts, outs, sums = batch.query_start.tolist(), [], []
    tokens: list[int] = []
    for row in range(batch.rows) if rows is None else rows:
        first, last = starts[row], starts[row + 1]
        if first == last:
            continue
        entries = batch.block_table[batch.slots[row].long()]
        keys, values = stored(arena, layout, entries, batch.lens[row], layer_offset)
        out, total = attention_of_row(
            q[:, first:last].double(), keys, values, scale=scale, window=window, softcap=softcap
        )
        heads = Heads(kv_heads=q.shape[0], group=q.shape[2], head_dim=q.shape[3])
        outs.append(out.transpose(0, 1).reshape(last - first, heads.q_heads, heads.head_dim))
        sums.append(total.transpose(0, 1).reshape(last - first, heads.q_heads))
        tokens += range(first, last)
    return torch.cat(outs), torch.cat(sums), torch.tensor(tokens, device=q.device)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """In float64."""
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.double()


def rotated(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x [tokens, heads, dim] with its first rot_dim elements rotated in halves, in float64."""
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin.double()[positions.long(), None].split((half, half), -1)
    a, b, rest = x.double().split((half, half, x.shape[2] - 2 * half), -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
