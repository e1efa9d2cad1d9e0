"""The operations of a step on a device: one interface, Triton kernels behind it or plain torch.

`triton_ops` are the launchers of `airi.kernels`, `ReferenceOps` (in .reference_ops) computes the same on the host,
so that everything around the kernels runs where there is no device. Both write into the tensors they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, Protocol

from airi.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from airi.kernels.attention_plan import AttentionPlan, DecodeWorkspace
    from airi.kernels.expert_plan import ExpertPlan
    from airi.kernels.layout import KvLayout

__all__ = ["Activation", "Ops", "ops_for", "triton_ops"]

Activation = Literal["silu", "gelu_tanh"]


class Ops(Protocol):
    """What a step is made of. Shapes and meanings are those of the launchers in `airi.kernels`.

    T tokens, R rows, S slots; `layout` is a `KvLayout`. *Thread safety*: none.
    """

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
        """Block-table entries [T] of the tokens' blocks, -1 for padding."""
        ...

    def apply_table_deltas(
        self, block_table: torch.Tensor, deltas: torch.Tensor, count: torch.Tensor
    ) -> None:
        """Makes the first count[0] changes (slot, column, entry)."""
        ...

    def zero_granules(self, arena: torch.Tensor, ranges: torch.Tensor) -> None:
        """Zeroes ranges (first, how many) of the arena's granules; 0 for none."""
        ...

    def fill_tokens(
        self,
        tokens: torch.Tensor,
        last_tokens: torch.Tensor,
        query_start: torch.Tensor,
        slots: torch.Tensor,
        row_flags: torch.Tensor,
        pending_flag: int,
    ) -> None:
        """Gives rows with the flag what was sampled for their slot."""
        ...

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
        """Norms, rotates, writes keys and values to the arena and queries to q_out [kv_heads, T, group, dim]."""
        ...

    @property
    def num_sms(self) -> int:
        """What plans are made for; the host's count of items takes the same."""
        ...

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
        """Makes the plan of these rows."""
        ...

    def tile_queries(self, layout: KvLayout, group: int) -> int:
        """Queries of one tile of `paged_prefill`; raises `ConfigError` for shapes that attention does not take."""
        ...

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
        """Attention of the rows with one query; other rows of out [T, heads, dim] stay untouched."""
        ...

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
        """Attention of the rows with more queries; other rows of out stay untouched."""
        ...

    def gather_dequant(
        self,
        arena: torch.Tensor,
        layout: KvLayout,
        block_table: torch.Tensor,
        slots: torch.Tensor,
        seq_lens: torch.Tensor,
        starts: torch.Tensor,
        scratch: torch.Tensor,
        scratch_layout: KvLayout,
        scratch_table: torch.Tensor,
        *,
        layer_offset: int = 0,
        num_blocks: int | None = None,
    ) -> None:
        """Row r's blocks, multiplied with their scales, to scratch blocks [starts[r], starts[r + 1]).

        scratch_table, int32 [rows, columns], gets in row r the entries of these.
        """
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """out = norm(x) * weight."""
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """residual += x, out = norm(residual) * weight."""
        ...

    def rms_norm_add(self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor) -> None:
        """residual += norm(x) * weight."""
        ...

    def glu(self, gate_up: torch.Tensor, out: torch.Tensor, *, activation: Activation) -> None:
        """out = act(gate) * up."""
        ...

    def route_experts(
        self,
        scores: torch.Tensor,
        entries: torch.Tensor,
        plan: ExpertPlan,
        *,
        top_k: int,
        normalize: bool,
        tile_rows: int,
    ) -> None:
        """Chooses each token's experts and cuts their work into tiles."""
        ...

    def expert_matmul(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor | None,
        order: torch.Tensor,
        tiles: torch.Tensor,
        out: torch.Tensor,
        *,
        tile_rows: int,
        row_weights: torch.Tensor | None = None,
    ) -> None:
        """out[a] = x[a // k] @ weight[expert of a].T, times row_weights[a]; k is how often out has x's rows."""
        ...


def ops_for(device: torch.device) -> Ops:
    """The operations for a device: kernels, or plain torch on the host."""
    if device.type == "cpu":
        from airi.engine.backends.cuda.reference_ops import ReferenceOps

        return ReferenceOps()
    return triton_ops(device)


# Modules of airi.kernels, and their launchers.
_LAUNCHERS: Mapping[str, tuple[str, ...]] = {
    "tokens": ("map_tokens", "apply_table_deltas", "fill_tokens"),
    "qkv_post": ("qkv_post",),
    "decode": ("paged_decode",),
    "prefill": ("paged_prefill",),
    "blocks": ("gather_dequant", "zero_granules"),
    "norm": ("rms_norm", "add_rms_norm", "rms_norm_add"),
    "glu": ("glu",),
    "routing": ("route_experts",),
    "experts": ("expert_matmul",),
}


def triton_ops(device: torch.device) -> Ops:
    """The launchers of `airi.kernels` for one device, imported now; raises ConfigError for one without kernels."""
    from airi.kernels import arch as archs

    try:
        arch = archs.arch_of(device)
    except ValueError as error:
        raise ConfigError(str(error), field="device") from None

    def tile_queries(layout: KvLayout, group: int) -> int:
        from airi.kernels._prefill import prefill_tiles
        from airi.kernels.decode_tiles import decode_tiles

        shape = layout.head_dim, group, layout.dtype, layout.block_size
        try:
            decode_tiles(arch, layout.head_dim, layout.block_size, layout.dtype, group)
            return int(prefill_tiles(arch, *shape).tile_queries)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    launchers = {
        name: getattr(import_module(f"airi.kernels.{module}"), name)
        for module, names in _LAUNCHERS.items()
        for name in names
    }
    plan = import_module("airi.kernels.plan").plan_attention
    ops: Ops = SimpleNamespace(
        num_sms=arch.num_sms,
        tile_queries=tile_queries,
        plan_attention=partial(plan, num_sms=arch.num_sms),
        **launchers,
    )
    return ops
