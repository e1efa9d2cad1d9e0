"""A mixture of experts without the host: every shape is known before the step, so that it may be captured.

A token's k choices are k assignments, T * k in all. They are ordered by expert and cut into tiles of one expert each;
the products read a tile's rows wherever they lie and write them back in the order of assignments:

    inner[a] = act-and-multiply(x[a // k] @ gate_up[e_a].T)
    out[t]   = sum over its k assignments a of  weight_a * (inner[a] @ down[e_a].T)

so an expert's weights are read only if a token chose it, and a token's result does not depend on the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airi.engine.spec import DecoderSpec

if TYPE_CHECKING:
    import torch

    from airi.engine.backends.cuda.buffers import StepBuffers
    from airi.engine.backends.cuda.ops import Ops
    from airi.engine.backends.cuda.weights import SparseMlp
    from airi.kernels.expert_plan import ExpertPlan

__all__ = ["run_experts"]


def run_experts(
    spec: DecoderSpec,
    mlp: SparseMlp,
    h: torch.Tensor,
    entries: torch.Tensor,
    plan: ExpertPlan,
    buffers: StepBuffers,
    ops: Ops,
    out: torch.Tensor,
) -> torch.Tensor:
    """out [T, hidden] = the experts' weighted sum for h; tokens whose entry [T] is -1 read no weights."""
    import torch

    moe = spec.moe
    if moe is None:
        raise RuntimeError("a sparse layer in a model without experts")
    count, top = len(h), moe.top_k
    rows = tile_rows(count * top, moe.num_experts)
    plan = plan.narrow(count * top, rows)
    scores = h @ mlp.router.weight.tensor.t()
    ops.route_experts(scores, entries, plan, top_k=top, normalize=moe.normalize_top_k, tile_rows=rows)
    gate_up = buffers.rows("expert_gate_up", count).view(count * top, -1)
    inner = buffers.rows("expert_inner", count).view(count * top, -1)
    parts = buffers.rows("expert_out", count).view(count * top, -1)
    ops.expert_matmul(h, *mlp.gate_up.tensors(), plan.order, plan.tiles, gate_up, tile_rows=rows)
    ops.glu(gate_up, inner, activation=spec.activation)
    ops.expert_matmul(
        inner,
        *mlp.down.tensors(),
        plan.order,
        plan.tiles,
        parts,
        tile_rows=rows,
        row_weights=plan.weights,
    )
    return torch.sum(parts.view(count, top, -1), 1, out=out)


def tile_rows(assignments: int, num_experts: int) -> int:
    """Rows of a tile: about what an expert gets on average, of those that the kernels take."""
    average = assignments / num_experts
    return 16 if average <= 16 else 64 if average <= 128 else 128
