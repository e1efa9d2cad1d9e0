"""Batches over a poisoned arena, and float64 attention over what they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airi.kernels import reference
from airi.kernels.layout import GRANULE_BYTES, KvLayout
from airi.kernels.reference import PagedBatch

POISON = 0xFF
"""NaN in every float dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiled:
    """The part of a plan that prefill reads."""

    tiles: torch.Tensor


def int32(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def tiles_of(query_start: torch.Tensor, tile_queries: int, *, spare: int = 0) -> Tiled:
    """Query tiles of the rows with two queries or more, a row's last first, and `spare` that are none."""
    lens = query_start.diff().tolist()
    cut = [(row, i) for row, n in enumerate(lens) if n > 1 for i in reversed(range(-(-n // tile_queries)))]
    return Tiled(tiles=int32(cut + [(-1, 0)] * spare).reshape(-1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows of (queries, keys) whose keys and values lie in an arena that is NaN wherever nothing was written."""

    layout: KvLayout
    batch: PagedBatch
    arena: torch.Tensor
    q: torch.Tensor
    """[kv_heads, tokens, group, head_dim]."""
    layer_offset: int = 0

    @property
    def group(self) -> int:
        return int(self.q.shape[2])

    def expected(self, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs [tokens, q_heads, head_dim] and log-sums [tokens, q_heads] in float64."""
        return dense(self.q, self.arena, self.layout, self.batch, layer_offset=self.layer_offset, **options)


def make_case(
    rows: list[tuple[int, int]],
    *,
    head_dim: int = 64,
    group: int = 2,
    kv_heads: int = 2,
    block_size: int = 64,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    layer_major: bool = False,
    finite: bool = False,
    order: int = 0,
    seed: int = 0,
) -> Case:
    """Blocks lie in an order drawn by `order`; `finite` fills what is not written with ones in place of NaN."""
    generator = torch.Generator().manual_seed(seed)
    layout = KvLayout.block_major(
        block_size=block_size, num_kv_heads=kv_heads, head_dim=head_dim, dtype=kv_dtype or dtype
    )
    layers, layer = 3, 1
    step = -(-layers * layout.layer_bytes // GRANULE_BYTES)  # granules from one block to the next
    counts = [-(-keys // block_size) for _, keys in rows]
    total = sum(counts) + 2
    drawn = np.random.default_rng(order).permutation(total)
    layer_offset = layer * layout.layer_bytes
    if layer_major:
        # A layer's blocks lie together; a block-table entry still counts granules.
        step = -(-layout.layer_bytes // GRANULE_BYTES)
        layer_offset = layer * total * step * GRANULE_BYTES
    arena = _arena(total * step * (layers if layer_major else 1), layout, finite=finite)
    batch = _batch(rows, counts, drawn * step)
    whole = replace(batch, query_start=int32([0, *np.cumsum([keys for _, keys in rows]).tolist()]))
    kv = torch.randn(2, whole.tokens, kv_heads, head_dim, generator=generator)
    reference.write_kv(kv[0], kv[1], arena, layout, whole, layer_offset=layer_offset)
    q = torch.randn(kv_heads, batch.tokens, group, head_dim, generator=generator).to(dtype)
    if layout.is_quantised:
        q = q.half().to(dtype)  # as kernels round them beside quantised keys
    return Case(layout=layout, batch=batch, arena=arena, q=q, layer_offset=layer_offset)


def _arena(granules: int, layout: KvLayout, *, finite: bool) -> torch.Tensor:
    arena = torch.full((granules * GRANULE_BYTES,), POISON, dtype=torch.uint8)
    if finite:
        arena.view(layout.dtype).fill_(1)
        if layout.is_quantised:
            arena.view(torch.float32).fill_(1)
    return arena


def _batch(rows: list[tuple[int, int]], counts: list[int], entries: NDArray[np.int64]) -> PagedBatch:
    """Each row has its number of the entries; what it must not read leads to the last, NaN throughout."""
    table = np.full((len(rows) + 1, max(counts, default=0) + 1), entries[-1], dtype=np.int32)
    slots, at = [(row + 1) % (len(rows) + 1) for row in range(len(rows))], 0
    for slot, count in zip(slots, counts, strict=True):
        table[slot, :count] = entries[at : at + count]
        at += count
    return PagedBatch(
        query_start=int32([0, *np.cumsum([queries for queries, _ in rows]).tolist()]),
        seq_lens=int32([keys for _, keys in rows]),
        slots=int32(slots),
        block_table=torch.from_numpy(table),
    )


def sparse_arena(path: Path, size: int) -> torch.Tensor:
    """uint8 [size] of zeros in a file, of which only what is written takes space."""
    with path.open("wb") as file:
        file.truncate(size)
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)


def dense(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    *,
    scale: float,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked attention of whole matrices in float64, from the stored keys and values."""
    kv_heads, tokens, group, head_dim = q.shape
    out = torch.zeros(tokens, kv_heads * group, head_dim, dtype=torch.float64)
    lse = torch.full((tokens, kv_heads * group), -math.inf, dtype=torch.float64)
    for row in range(batch.seq_lens.shape[0]):
        span = slice(int(batch.query_start[row]), int(batch.query_start[row + 1]))
        if span.start == span.stop:
            continue
        keys, values = reference.gather_kv(arena, layout, batch, row, layer_offset=layer_offset)
        position = torch.tensor(list(batch.positions(row)))[:, None]
        key = torch.arange(keys.shape[1])[None]
        seen = (key <= position) & (key > position - (window or keys.shape[1] + 1))
        scores = torch.einsum("htgd,hkd->htgk", q[:, span].double(), keys.double()) * scale
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        scores = scores.masked_fill(~seen[None, :, None], -math.inf)
        weights = torch.softmax(scores, -1)
        result = torch.einsum("htgk,hkd->thgd", weights, values.double())
        out[span] = result.flatten(1, 2)
        lse[span] = torch.logsumexp(scores, -1).transpose(0, 1).flatten(1, 2)
    return out, lse
