"""Attention of a step: its rows cut into work once, then run by every layer.

The rows of a step run together unless their partial results or the scratch memory do not hold them; then they run in
waves, contiguous ranges of rows one after the other. A row's result does not depend on its wave.

Quantised keys and values: decode kernels read them as they are. For rows with more queries a layer's context is first
multiplied out into scratch memory, once instead of once per tile of queries; that memory holds at least one row of
any length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends import KV_GRANULE
from airi.engine.backends.cuda.interface import CudaBinding, CudaStep
from airi.engine.backends.cuda.ops import Ops
from airi.engine.spec import DecoderSpec

if TYPE_CHECKING:
    import torch

    from airi.kernels.attention_plan import AttentionPlan
    from airi.kernels.layout import KvLayout

__all__ = ["Attention", "AttentionWork", "Limits", "attention_windows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What attention may take of a device's memory, in bytes."""

    workspace: int = 128 * 2**20
    """Partial results of decode rows."""
    scratch: int = 128 * 2**20
    """One layer's context, where keys and values are quantised; more where the longest sequence needs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scratch:
    """A layer's context of a wave, multiplied out: what `paged_prefill` reads instead of the arena."""

    memory: torch.Tensor
    layout: KvLayout
    table: torch.Tensor
    """int32 [rows, columns]: row r's blocks, written as they are gathered."""
    rows: torch.Tensor
    """int32 [rows]: 0, 1, 2, ... in the slots' place."""
    starts: torch.Tensor
    """int32 [rows + 1]: row r has blocks [starts[r], starts[r + 1])."""
    num_blocks: int
    """Of all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wave:
    """Rows that run together."""

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    slots: torch.Tensor
    plans: Mapping[int, AttentionPlan]
    """By window."""
    has_decode: bool
    num_tiles: int
    """Tiles of queries of rows with more than one; 0 when there are none."""
    scratch: _Scratch | None


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """What `Attention.run` needs to know of a step beside a layer's values."""

    entries: torch.Tensor
    """int32 [T]"""
    waves: tuple[_Wave, ...]


def attention_windows(spec: DecoderSpec, max_model_len: int) -> tuple[int, ...]:
    """The window of each layer, 0 where it has none or all sequences lie inside."""
    windows = (layer.window or 0 for layer in spec.layers)
    return tuple(window if window < max_model_len else 0 for window in windows)


class Attention:
    """Plans, workspaces and scratch memory of one model bound to one arena. *Thread safety*: none.

    *Invariant*: what it allocated stays where it is, so that graphs may be captured over it.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        ops: Ops,
        binding: CudaBinding,
        layout: KvLayout,
        dtype: torch.dtype,
        *,
        windows: tuple[int, ...],
        max_model_len: int,
        limits: Limits,
    ) -> None:
        import torch

        from airi.kernels._blocks import block_granules
        from airi.kernels.attention_plan import DecodeWorkspace
        from airi.kernels.layout import KvLayout

        self._spec, self._ops, self._binding, self._layout = spec, ops, binding, layout
        self._windows, self._distinct = windows, tuple(sorted(set(windows)))
        self._scratch_layout = KvLayout.block_major(
            block_size=layout.block_size,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype=dtype,
        )
        self._scratch_blocks = 0
        batch, device = binding.batch, binding.arena.device
        block_bytes = block_granules(self._scratch_layout) * KV_GRANULE
        if layout.is_quantised:
            columns = binding.block_table.shape[1]
            self._scratch_blocks = max(columns, min(batch.max_rows * columns, limits.scratch // block_bytes))
        self._scratch = torch.zeros(self._scratch_blocks * block_bytes, dtype=torch.uint8, device=device)
        self._most_per_row = self._items_per_row(np.arange(1, max_model_len + 1)).max()
        per_item = 4 * spec.num_heads * (spec.head_dim + 1)
        most = batch.max_rows * int(self._most_per_row)
        self._max_items = max(int(self._most_per_row), min(most, limits.workspace // per_item))
        self._workspace = DecodeWorkspace.allocate(device, self._max_items, spec.num_heads, spec.head_dim)
        self._entries = torch.full((batch.max_tokens,), -1, dtype=torch.int32, device=device)
        self._plans: dict[int, Mapping[int, AttentionPlan]] = {}
        self._tile_queries = ops.tile_queries(self._scratch_layout, spec.num_heads // spec.num_kv_heads)
        tiles = batch.max_rows + batch.max_tokens // self._tile_queries
        self._shared_plans = self._allocate_plans(batch.max_rows, self._max_items, tiles)

    def fits(self, step: CudaStep) -> bool:
        """Whether a step needs no second wave, so that `decode_work` or `mixed_work` may run it."""
        if step.is_decode and step.num_rows * int(self._most_per_row) <= self._max_items:
            return True
        return self._fit(*self._needs(np.diff(step.query_start), step.seq_lens))

    def decode_work(self, rows: int) -> AttentionWork:
        """Enqueues what precedes the layers of a decoding step of up to `rows` rows, padded to them.

        Touches fixed buffers alone, the same ones for the same `rows`: it may be captured.
        """
        plans = self._plans.get(rows)
        if plans is None:
            most = min(self._max_items, rows * int(self._most_per_row))
            plans = self._plans[rows] = self._allocate_plans(rows, most, 0)
        wave = self._wave(0, rows, plans, has_decode=True, num_tiles=0, scratch_blocks=0)
        return AttentionWork(self._map_tokens(rows, rows), (wave,))

    def mixed_work(self, tokens: int) -> AttentionWork:
        """As `decode_work`, of any step that fits, padded to `tokens` tokens; whichever rows they are of."""
        rows = min(self._binding.batch.max_rows, tokens)
        items = min(self._max_items, rows * int(self._most_per_row))
        tiles = min(rows, tokens // 2) + tokens // self._tile_queries
        plans = self._step_plans(items, tiles)
        blocks = self._scratch_blocks
        wave = self._wave(0, rows, plans, has_decode=True, num_tiles=tiles, scratch_blocks=blocks)
        return AttentionWork(self._map_tokens(rows, tokens), (wave,))

    def work(self, step: CudaStep, tokens: int) -> AttentionWork:
        """Enqueues what precedes the layers of any step, whose tokens are padded to `tokens`."""
        entries = self._map_tokens(step.num_rows, tokens)
        queries = np.diff(step.query_start)
        cuts = list(self._cuts(queries, step.seq_lens))
        waves = [self._any_wave(cut, queries, step, alone=len(cuts) == 1) for cut in cuts]
        return AttentionWork(entries, tuple(waves))

    def warm_up_work(self, tokens: int) -> AttentionWork:
        """Work of padding alone that launches every kernel which steps of prompts may; `DeviceBatch` is padding."""
        rows = min(self._binding.batch.max_rows, tokens)
        plans = self._allocate_plans(rows, 1, 1)
        blocks = 1 if self._layout.is_quantised else 0
        wave = self._wave(0, rows, plans, has_decode=True, num_tiles=1, scratch_blocks=blocks)
        return AttentionWork(self._map_tokens(rows, tokens), (wave,))

    def run(
        self, work: AttentionWork, index: int, q: torch.Tensor, out: torch.Tensor, layer_offset: int
    ) -> None:
        """Attention of layer `index`, whose keys and values are written.

        q [kv_heads, T, group, dim]; out [T, heads, dim].
        """
        window = self._windows[index]
        for wave in work.waves:
            if wave.has_decode:
                self._ops.paged_decode(
                    q,
                    self._binding.arena,
                    self._layout,
                    self._binding.block_table,
                    wave.slots,
                    wave.query_start,
                    wave.seq_lens,
                    wave.plans[window],
                    self._workspace,
                    out,
                    scale=self._spec.attention_scale,
                    layer_offset=layer_offset,
                    window=window,
                    softcap=self._spec.attention_softcap or 0.0,
                )
            if wave.num_tiles:
                self._prefill(wave, window, q, out, layer_offset)

    def _prefill(
        self, wave: _Wave, window: int, q: torch.Tensor, out: torch.Tensor, layer_offset: int
    ) -> None:
        arena, layout, table, slots = self._binding.arena, self._layout, self._binding.block_table, wave.slots
        scratch = wave.scratch
        if scratch is not None:
            into = scratch.starts, scratch.memory, scratch.layout, scratch.table
            self._ops.gather_dequant(
                arena,
                layout,
                table,
                slots,
                wave.seq_lens,
                *into,
                layer_offset=layer_offset,
                num_blocks=scratch.num_blocks,
            )
            arena, layout, table, slots = scratch.memory, scratch.layout, scratch.table, scratch.rows
            layer_offset = 0
        self._ops.paged_prefill(
            q,
            arena,
            layout,
            table,
            slots,
            wave.query_start,
            wave.seq_lens,
            wave.plans[window],
            out,
            scale=self._spec.attention_scale,
            num_tiles=wave.num_tiles,
            layer_offset=layer_offset,
            window=window,
            softcap=self._spec.attention_softcap or 0.0,
        )

    def _map_tokens(self, rows: int, tokens: int) -> torch.Tensor:
        batch, entries = self._binding.batch, self._entries[:tokens]
        self._ops.map_tokens(
            batch.query_start[: rows + 1],
            batch.seq_lens[:rows],
            batch.slots[:rows],
            self._binding.block_table,
            entries,
            block_size=self._binding.block_size,
        )
        return entries

    def _items_per_row(self, seq_lens: NDArray[np.int32]) -> NDArray[np.int64]:
        """Items of decode rows of these lengths, those of the window that makes the most."""
        from airi.kernels.attention_plan import items_per_row

        heads, sms = self._spec.num_kv_heads, self._ops.num_sms
        counts = [
            items_per_row(seq_lens, num_kv_heads=heads, window=window, num_sms=sms)
            for window in self._distinct
        ]
        most: NDArray[np.int64] = np.max(counts, axis=0)
        return most

    def _needs(
        self, queries: NDArray[np.int32], seq_lens: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items of partial results and blocks of scratch memory that each row needs."""
        items = np.where(queries == 1, self._items_per_row(seq_lens), 0)
        blocks = np.zeros_like(items)
        if self._layout.is_quantised:
            blocks = np.where(queries > 1, -(-seq_lens.astype(np.int64) // self._layout.block_size), 0)
        return items, blocks

    def _fit(self, items: NDArray[np.int64], blocks: NDArray[np.int64]) -> bool:
        return bool(items.sum() <= self._max_items and blocks.sum() <= self._scratch_blocks)

    def _cuts(self, queries: NDArray[np.int32], seq_lens: NDArray[np.int32]) -> Iterator[range]:
        """Ranges of rows that run together: as many as workspace and scratch memory hold."""
        items, blocks = self._needs(queries, seq_lens)
        if self._fit(items, blocks):
            yield range(len(queries))
            return
        first = 0
        used_items = used_blocks = 0
        for row in range(len(queries)):
            used_items, used_blocks = used_items + items[row], used_blocks + blocks[row]
            if used_items > self._max_items or used_blocks > self._scratch_blocks:
                yield range(first, row)
                first, used_items, used_blocks = row, items[row], blocks[row]
        yield range(first, len(queries))

    def _any_wave(self, rows: range, queries: NDArray[np.int32], step: CudaStep, *, alone: bool) -> _Wave:
        """The wave of a range of rows; `alone`: it is the only one, and uses the plans kept for that."""
        counts = queries[rows.start : rows.stop]
        tiles = int((-(-counts[counts > 1] // self._tile_queries)).sum())
        decoding = step.seq_lens[rows.start : rows.stop][counts == 1]
        items = int(self._items_per_row(decoding).sum())
        plans = self._step_plans(items, tiles) if alone else self._allocate_plans(len(rows), items, tiles)
        lengths = step.seq_lens[rows.start : rows.stop][counts > 1]
        blocks = int((-(-lengths // self._layout.block_size)).sum()) if self._layout.is_quantised else 0
        return self._wave(
            rows.start, rows.stop, plans, has_decode=items > 0, num_tiles=tiles, scratch_blocks=blocks
        )

    def _allocate_plans(self, rows: int, items: int, tiles: int) -> Mapping[int, AttentionPlan]:
        from airi.kernels.attention_plan import AttentionPlan

        device = self._binding.arena.device
        return {
            window: AttentionPlan.allocate(device, rows, max(1, items), max(1, tiles))
            for window in self._distinct
        }

    def _step_plans(self, items: int, tiles: int) -> Mapping[int, AttentionPlan]:
        """The plans kept for steps of one wave, cut to what this one needs: kernels start as much as there is room."""
        from airi.kernels.attention_plan import AttentionPlan

        return {
            window: AttentionPlan(
                items=plan.items[: max(1, items)],
                row_items=plan.row_items,
                tiles=plan.tiles[: max(1, tiles)],
                counts=plan.counts,
            )
            for window, plan in self._shared_plans.items()
        }

    def _wave(
        self,
        first: int,
        end: int,
        plans: Mapping[int, AttentionPlan],
        *,
        has_decode: bool,
        num_tiles: int,
        scratch_blocks: int,
    ) -> _Wave:
        """Plans the rows [first, end) of the step."""
        batch = self._binding.batch
        query_start, seq_lens = batch.query_start[first : end + 1], batch.seq_lens[first:end]
        slots = batch.slots[first:end]
        if first:  # kernels are compiled for aligned addresses
            query_start, seq_lens, slots = query_start.clone(), seq_lens.clone(), slots.clone()
        for window, plan in plans.items():
            self._ops.plan_attention(
                query_start,
                seq_lens,
                plan,
                num_kv_heads=self._spec.num_kv_heads,
                tile_queries=self._tile_queries,
                window=window,
            )
        return _Wave(
            query_start=query_start,
            seq_lens=seq_lens,
            slots=slots,
            plans=plans,
            has_decode=has_decode,
            num_tiles=num_tiles,
            scratch=self._make_scratch(first, end, scratch_blocks) if scratch_blocks else None,
        )

    def _make_scratch(self, first: int, end: int, num_blocks: int) -> _Scratch:
        """Where the context of rows [first, end) goes: rows with more than one query, one behind the other."""
        import torch

        batch, size = self._binding.batch, self._layout.block_size
        queries = batch.query_start[first : end + 1].diff()
        blocks = torch.where(queries > 1, (batch.seq_lens[first:end] + (size - 1)) // size, 0)
        starts = torch.zeros(end - first + 1, dtype=torch.int32, device=blocks.device)
        torch.cumsum(blocks, 0, dtype=torch.int32, out=starts[1:])
        columns = self._binding.block_table.shape[1]
        return _Scratch(
            memory=self._scratch,
            layout=self._scratch_layout,
            table=torch.empty((end - first, columns), dtype=torch.int32, device=blocks.device),
            rows=torch.arange(end - first, dtype=torch.int32, device=blocks.device),
            starts=starts,
            num_blocks=num_blocks,
        )
