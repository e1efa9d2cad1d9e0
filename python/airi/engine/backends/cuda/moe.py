"""A mixture of experts without the host: every shape is known before the step, so that it may be captured.

A token's k choices are k assignments, T * k in all. They are sorted by expert and cut into tiles of one expert each;
the products read a tile's rows wherever they lie and write them back in the order of assignments:

    inner[a] = act-and-multiply(x[a // k] @ gate_up[e_a].T)
    out[t]   = sum over its k assignments a of  weight_a * (inner[a] @ down[e_a].T)

so an expert's weights are read only if a token chose it, and a token's result does not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airi.engine.spec import DecoderSpec, MoeSpec

if TYPE_CHECKING:
    import torch

    from airi.engine.backends.cuda.buffers import StepBuffers
    from airi.engine.backends.cuda.ops import Ops
    from airi.engine.backends.cuda.weights import SparseMlp

__all__ = ["ExpertPlan", "plan_experts", "run_experts"]


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """Which rows go to which expert, in device memory."""

    order: torch.Tensor
    """int32 [assignments], sorted by expert; those of no expert come last."""
    tiles: torch.Tensor
    """int32 [max_tiles, 3]: expert, first place in `order` and number of places; none has number 0."""
    tile_rows: int
    """Places of a tile at most."""


def run_experts(
    spec: DecoderSpec,
    mlp: SparseMlp,
    h: torch.Tensor,
    live: torch.Tensor,
    buffers: StepBuffers,
    ops: Ops,
    out: torch.Tensor,
) -> torch.Tensor:
    """out [T, hidden] = the experts' weighted sum for h; tokens that are not `live` [T] read no weights."""
    import torch

    moe = spec.moe
    if moe is None:
        raise RuntimeError("a sparse layer in a model without experts")
    count, top = len(h), moe.top_k
    weights, chosen = _route(moe, h @ mlp.router.weight.tensor.t())
    chosen = torch.where(live[:, None], chosen, moe.num_experts)
    plan = plan_experts(chosen.flatten(), moe.num_experts, tile_rows(count * top, moe.num_experts))
    gate_up = buffers.rows("expert_gate_up", count).view(count * top, -1)
    inner = buffers.rows("expert_inner", count).view(count * top, -1)
    parts = buffers.rows("expert_out", count).view(count * top, -1)
    ops.expert_matmul(h, *mlp.gate_up.tensors(), plan.order, plan.tiles, gate_up, tile_rows=plan.tile_rows)
    ops.glu(gate_up, inner, activation=spec.activation)
    ops.expert_matmul(
        inner,
        *mlp.down.tensors(),
        plan.order,
        plan.tiles,
        parts,
        tile_rows=plan.tile_rows,
        row_weights=weights.flatten(),
    )
    return torch.sum(parts.view(count, top, -1), 1, out=out)


def _route(moe: MoeSpec, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights float32 and experts [T, k] of each token."""
    weights, chosen = scores.float().softmax(-1).topk(moe.top_k, dim=-1)
    if moe.normalize_top_k:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, chosen


def tile_rows(assignments: int, num_experts: int) -> int:
    """Rows of a tile: about what an expert gets on average, of those that the kernels take."""
    average = assignments / num_experts
    return 16 if average <= 16 else 64 if average <= 128 else 128


def plan_experts(chosen: torch.Tensor, num_experts: int, rows: int) -> ExpertPlan:
    """The plan for each assignment's expert [assignments]; `num_experts` stands for none."""
    import torch

    device, assignments = chosen.device, len(chosen)
    experts, order = torch.sort(chosen, stable=True)
    bounds = torch.searchsorted(experts, torch.arange(num_experts + 1, device=device))
    counts = bounds.diff()
    ends = ((counts + (rows - 1)) // rows).cumsum(0)
    # Every expert's last tile may be cut off; no more experts than assignments have one.
    most = assignments // rows + min(num_experts, assignments)
    index = torch.arange(most, device=device)
    expert = torch.searchsorted(ends, index, right=True)
    known = expert.clamp_max(num_experts - 1)
    # The tile's place among those of its expert.
    place = index - torch.where(known > 0, ends[(known - 1).clamp_min(0)], 0)
    number = (counts[known] - place * rows).clamp(max=rows) * (expert < num_experts)
    tiles = torch.stack((known, bounds[known] + place * rows, number), 1)
    return ExpertPlan(order.int(), tiles.int(), rows)
