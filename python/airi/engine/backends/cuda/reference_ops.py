"""The operations in plain torch on the host: what the kernels do, so that all around it runs without a device.

The specification in `airi.kernels.reference` is written to be read, query by query; here whole rows are computed at
once, each by itself, so that a row's bits do not depend on what runs beside it. Values that lead out of the block
table or the arena are refused, as the launchers refuse them on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from airi.engine.backends.cuda.ops import Activation

if TYPE_CHECKING:
    import torch

    from airi.kernels.attention_plan import AttentionPlan, DecodeWorkspace
    from airi.kernels.layout import KvLayout

__all__ = ["ReferenceOps"]

_GRANULE_BYTES = 4096
_TILE_ROWS = 16


@dataclass(frozen=True, slots=True)
class _Memory:
    """One layer of the arena as elements: where a token's key and value lie."""

    arena: torch.Tensor
    layout: KvLayout
    layer_offset: int

    def elements(self, entries: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Indices [2, kv_heads, n, dim] of the tokens at these positions, whose blocks are these entries."""
        import torch

        layout, size = self.layout, self.layout.dtype.itemsize
        heads = torch.arange(layout.num_kv_heads)[:, None] * (layout.head_stride // size)
        parts = torch.arange(2)[:, None, None] * (layout.kv_stride // size)
        at = (entries.long() * _GRANULE_BYTES + self.layer_offset) // size
        at = at + positions.long() % layout.block_size * (layout.token_stride // size)
        return (parts + heads + at)[..., None] + torch.arange(layout.head_dim)

    def scales(self, entries: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Indices [2, kv_heads, n] of their scales, in float32 elements."""
        import torch

        layout = self.layout
        heads = torch.arange(layout.num_kv_heads)[:, None] * (layout.head_stride // 4)
        parts = torch.arange(2)[:, None, None] * layout.block_size
        at = (entries.long() * _GRANULE_BYTES + self.layer_offset + layout.scale_offset) // 4
        return parts + heads + at + positions.long() % layout.block_size

    def write(self, both: torch.Tensor, entries: torch.Tensor, positions: torch.Tensor) -> None:
        """Stores keys and values [2, kv_heads, n, dim]."""
        import torch

        from airi.kernels import reference

        dtype = self.layout.dtype
        if self.layout.is_quantised:
            both, scales = reference.quantise(both, dtype)
            self.arena.view(torch.float32)[self.scales(entries, positions)] = scales
        stored = both.to(dtype)
        # Bits: not every dtype can be indexed by torch on a CPU.
        bits = torch.int8 if dtype.itemsize == 1 else dtype
        self.arena.view(bits)[self.elements(entries, positions)] = stored.view(bits)

    def read(self, entries: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Keys and values [2, kv_heads, n, dim] in float32."""
        import torch

        dtype = self.layout.dtype
        bits = torch.int8 if dtype.itemsize == 1 else dtype
        both = self.arena.view(bits)[self.elements(entries, positions)].view(dtype).float()
        if self.layout.is_quantised:
            both *= self.arena.view(torch.float32)[self.scales(entries, positions)][..., None]
        return both


class ReferenceOps:
    """`Ops` on the host. *Thread safety*: none."""

    num_sms = 132

    def __init__(self) -> None:
        from airi.kernels import reference

        self.apply_table_deltas: Callable[..., None] = reference.apply_table_deltas
        self.fill_tokens: Callable[..., None] = reference.fill_tokens
        self.zero_granules: Callable[..., None] = reference.zero_granules
        self.gather_dequant: Callable[..., None] = reference.gather_dequant
        self.route_experts: Callable[..., None] = reference.route_experts
        self.expert_matmul: Callable[..., None] = reference.expert_matmul

    def map_tokens(
        self,
        query_start: torch.Tensor,
        seq_lens: torch.Tensor,
        slots: torch.Tensor,
        block_table: torch.Tensor,
        out_entries: torch.Tensor,
        *,
        block_size: int,
    ) -> None:
        """As `Ops.map_tokens`."""
        import torch

        from airi.kernels import _values

        counts = query_start.diff()
        live = np.flatnonzero(counts.numpy())
        _values.check_queries(live, query_start, len(out_entries))
        _values.check_lines(live, seq_lens, slots, block_table, block_size)
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        tokens = torch.arange(len(rows)) + int(query_start[0])
        positions = seq_lens[rows] - query_start[1:][rows] + tokens
        out_entries.fill_(-1)
        out_entries[tokens] = block_table[slots[rows].long(), positions.long() // block_size]

    def qkv_post(
        self,
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
        """As `Ops.qkv_post`."""
        import torch

        from airi.kernels import _values, reference

        _values.check_places(entries, positions, len(cos_sin), layout, arena, layer_offset)
        kv_heads = layout.num_kv_heads
        q, k, v = qkv.float().split((qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads), 1)
        q = q if q_norm is None else reference.rms_norm(q, q_norm, eps)
        k = k if k_norm is None else reference.rms_norm(k, k_norm, eps)
        q, k = (reference.rope(x, cos_sin, positions) for x in (q, k))
        live = entries >= 0
        q = torch.where(live[:, None, None], q, 0.0)
        q_out.copy_(q.unflatten(1, (kv_heads, -1)).transpose(0, 1))
        both = torch.stack((k, v))[:, live].transpose(1, 2)
        _Memory(arena, layout, layer_offset).write(both, entries[live], positions[live])

    def plan_attention(
        self,
        query_start: torch.Tensor,
        seq_lens: torch.Tensor,
        plan: AttentionPlan,
        *,
        num_kv_heads: int,
        tile_queries: int,
        window: int = 0,
    ) -> None:
        """As `Ops.plan_attention`; raises RuntimeError where rows find no room, which engines must not let happen."""
        import torch

        from airi.kernels.attention_plan import plan_on_host

        made = plan_on_host(
            query_start.numpy(),
            seq_lens.numpy(),
            max_items=len(plan.items),
            max_tiles=len(plan.tiles),
            num_kv_heads=num_kv_heads,
            tile_queries=tile_queries,
            window=window,
            num_sms=self.num_sms,
        )
        if made.counts[2]:
            raise RuntimeError(f"a plan has no room for {made.counts[2]} items and tiles")
        plan.items[: len(made.items)] = torch.from_numpy(made.items)
        plan.row_items[: len(made.row_items)] = torch.from_numpy(made.row_items)
        plan.tiles.copy_(torch.from_numpy(made.tiles))
        plan.counts.copy_(torch.from_numpy(made.counts))

    def tile_queries(self, layout: KvLayout, group: int) -> int:
        """As `Ops.tile_queries`."""
        return max(1, _TILE_ROWS // group)

    def paged_decode(
        self,
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
    ) -> None:
        """As `Ops.paged_decode`: the rows that the plan's items name."""
        memory = _Memory(arena, layout, layer_offset)
        rows = sorted(set(plan.items[: int(plan.counts[0]), 0].tolist()))
        _attend(rows, q, memory, block_table, slots, query_start, seq_lens, out, scale, window, softcap)

    def paged_prefill(
        self,
        q: torch.Tensor,
        arena: torch.Tensor,
        layout: KvLayout,
        block_table: torch.Tensor,
        slots: torch.Tensor,
        query_start: torch.Tensor,
        seq_lens: torch.Tensor,
        plan: AttentionPlan,
        out: torch.Tensor,
        *,
        scale: float,
        num_tiles: int,
        layer_offset: int = 0,
        window: int = 0,
        softcap: float = 0.0,
    ) -> None:
        """As `Ops.paged_prefill`: the rows that the plan's first tiles name."""
        memory = _Memory(arena, layout, layer_offset)
        rows = sorted(set(plan.tiles[:num_tiles, 0].tolist()) - {-1})
        _attend(rows, q, memory, block_table, slots, query_start, seq_lens, out, scale, window, softcap)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """As `Ops.rms_norm`."""
        from airi.kernels import reference

        out.copy_(reference.rms_norm(x.float(), weight, eps))

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """As `Ops.add_rms_norm`."""
        residual.add_(x)
        self.rms_norm(residual, weight, eps, out)

    def rms_norm_add(self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor) -> None:
        """As `Ops.rms_norm_add`."""
        from airi.kernels import reference

        residual.copy_(residual.float() + reference.rms_norm(x.float(), weight, eps))

    def glu(self, gate_up: torch.Tensor, out: torch.Tensor, *, activation: Activation) -> None:
        """As `Ops.glu`."""
        from torch.nn import functional

        gate, up = gate_up.float().chunk(2, -1)
        act = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
        out.copy_(act * up)


def _attend(
    rows: list[int],
    q: torch.Tensor,
    memory: _Memory,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> None:
    """Attention of all queries of these rows; q [kv_heads, T, group, dim], out [T, heads, dim]."""
    import torch

    from airi.kernels import _values

    of_rows = query_start, q.shape[1], seq_lens, slots, block_table
    place = memory.layout, memory.arena, memory.layer_offset
    _values.check_attended(np.array(rows, np.int64), *of_rows, *place, window)
    for row in rows:
        first, end, length = int(query_start[row]), int(query_start[row + 1]), int(seq_lens[row])
        position = torch.arange(length - (end - first), length)
        lowest = max(0, int(position[0]) - window + 1) if window else 0
        at = torch.arange(lowest, length)
        keys, values = memory.read(block_table[int(slots[row])][at // memory.layout.block_size], at)
        queries = q[:, first:end].float()
        scores = (queries.flatten(1, 2) @ keys.transpose(1, 2) * scale).unflatten(1, queries.shape[1:3])
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        unseen = at > position[:, None]
        if window:
            unseen |= at <= position[:, None] - window
        scores = scores.masked_fill(unseen[:, None], float("-inf"))
        result = scores.softmax(-1).flatten(1, 2) @ values
        heads = result.unflatten(1, queries.shape[1:3]).transpose(0, 1)
        out[first:end] = heads.flatten(1, 2).to(out.dtype)
