"""One layer's attention over a batch: the plan, the workspaces and the launchers, as the engine calls them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from airi.kernels.arch import arch_of
from airi.kernels.attention_plan import AttentionPlan, DecodeWorkspace, count_items
from airi.kernels.decode import paged_decode
from airi.kernels.plan import plan_attention
from airi.kernels.prefill import paged_prefill, prefill_tiles
from benches.gpu.pool import Batch, Pool

Mode = Literal["invariant", "fast"]
Variant = Literal["auto", "tma", "pointer"]


class Attend:
    """Attention of a batch's rows: those of one query by decoding, the others by tiles of queries.

    `part` "decode" or "prefill" leaves the other kind of rows out.
    """

    def __init__(
        self,
        pool: Pool,
        batch: Batch,
        *,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        mode: Mode = "invariant",
        variant: Variant = "auto",
        part: Literal["both", "decode", "prefill"] = "both",
    ) -> None:
        heads, device = pool.heads, pool.arena.device
        self.pool, self.batch = pool, batch
        self.scale = heads.head_dim**-0.5 if scale is None else scale
        self.window, self.softcap, self.mode, self.variant = window, softcap, mode, variant
        arch = arch_of(device)
        self.num_sms = arch.num_sms
        self._tile_queries = 1  # over quantised keys, which prefill does not read, there are no tiles
        if not pool.layout.is_quantised:
            shape = heads.head_dim, heads.group, pool.layout.dtype, pool.layout.block_size
            self._tile_queries = prefill_tiles(arch, *shape).tile_queries
        decoding = [n for n, q in zip(batch.lens, batch.query_lens, strict=True) if q == 1]
        chunks = [q for q in batch.query_lens if q > 1]
        self.decodes = bool(decoding) and part != "prefill"
        self.num_tiles = sum(-(-q // self._tile_queries) for q in chunks) if part != "decode" else 0
        self.items = count_items(
            np.array(decoding, np.int32), num_kv_heads=heads.kv_heads, window=window, num_sms=self.num_sms
        )
        # Not one to spare: an overflow would show as rows that are not written.
        self._plan = AttentionPlan.allocate(device, batch.rows, max(1, self.items), max(1, self.num_tiles))
        self._workspace = DecodeWorkspace.allocate(device, max(1, self.items), heads.q_heads, heads.head_dim)
        self.plan()

    def plan(self) -> None:
        """Cuts the rows into work; needed again only when lengths change."""
        plan_attention(
            self.batch.query_start,
            self.batch.seq_lens,
            self._plan,
            num_kv_heads=self.pool.heads.kv_heads,
            tile_queries=self._tile_queries,
            window=self.window,
            num_sms=self.num_sms,
            mode=self.mode,
        )

    def planned_items(self) -> int:
        """How many items the device's plan has; waits for the device."""
        return int(self._plan.counts[0])

    def __call__(
        self, q: torch.Tensor, out: torch.Tensor, layer: int = 0, *, lse: torch.Tensor | None = None
    ) -> None:
        """q [kv_heads, tokens, group, dim] against a layer of the pool, into out [tokens, q_heads, dim]."""
        offset = self.pool.layer_offset(layer)
        batch = self.batch
        place = (self.pool.arena, self.pool.layout, batch.block_table, batch.slots)
        rows = (batch.query_start, batch.seq_lens, self._plan)
        if self.decodes:
            paged_decode(
                q,
                *place,
                *rows,
                self._workspace,
                out,
                scale=self.scale,
                layer_offset=offset,
                window=self.window,
                softcap=self.softcap,
                lse=lse,
            )
        if self.num_tiles:
            paged_prefill(
                q,
                *place,
                *rows,
                out,
                scale=self.scale,
                layer_offset=offset,
                window=self.window,
                softcap=self.softcap,
                num_tiles=self.num_tiles,
                variant=self.variant,
                lse=lse,
            )


class Widened:
    """Chunks over quantised keys: the rows' blocks as `dtype` in a scratch arena, gathered before each layer.

    The block table of `batch` is written by that, too.
    """

    def __init__(self, pool: Pool, batch: Batch, dtype: torch.dtype) -> None:
        from airi.kernels.blocks import gather_dequant

        self._gather, self._source, self._rows = gather_dequant, pool, batch
        device, size = pool.arena.device, pool.layout.block_size
        counts = [-(-n // size) for n in batch.lens]
        self._starts = torch.tensor([0, *counts]).cumsum(0).int().to(device)
        one = Pool.unit_bytes(pool.heads, dtype, size)
        scratch = torch.full((sum(counts) * one,), 255, dtype=torch.uint8, device=device)
        self.pool = Pool(scratch, pool.heads, dtype=dtype, block_size=size, layers=1)
        self.batch = Batch(
            query_start=batch.query_start,
            seq_lens=batch.seq_lens,
            slots=torch.arange(batch.rows, dtype=torch.int32, device=device),
            block_table=torch.zeros((batch.rows, max(counts)), dtype=torch.int32, device=device),
            query_lens=batch.query_lens,
            lens=batch.lens,
        )

    def gather(self, layer: int) -> None:
        """Widens a layer's keys and values."""
        rows, source = self._rows, self._source
        self._gather(
            source.arena,
            source.layout,
            rows.block_table,
            rows.slots,
            rows.seq_lens,
            self._starts,
            self.pool.arena,
            self.pool.layout,
            self.batch.block_table,
            layer_offset=source.layer_offset(layer),
        )


def empty_out(batch: Batch, pool: Pool, dtype: torch.dtype, *, poison: bool = False) -> torch.Tensor:
    """Room for the outputs of a batch; NaN everywhere where poisoned."""
    shape = (batch.tokens, pool.heads.q_heads, pool.heads.head_dim)
    fill = float("nan") if poison else 0.0
    return torch.full(shape, fill, dtype=dtype, device=pool.arena.device)
