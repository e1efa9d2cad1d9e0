"""The decoder's dataflow (see `airi.engine.decoder`) on a device: embedding, layers, logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from airi.engine.backends import ModelInfo
from airi.engine.backends.cuda.buffers import StepBuffers
from airi.engine.backends.cuda.moe import run_experts
from airi.engine.backends.cuda.ops import Ops
from airi.engine.backends.cuda.shards import Collective
from airi.engine.backends.cuda.tensors import Weight
from airi.engine.backends.cuda.weights import DecoderLayer, DeviceWeights, SparseMlp
from airi.engine.rope import cos_sin_table
from airi.engine.spec import DecoderSpec, QkNorm

if TYPE_CHECKING:
    import torch

    from airi.kernels.expert_plan import ExpertPlan

__all__ = ["Attend", "Layers"]

Attend = Callable[[int, "torch.Tensor", "torch.Tensor | None", "torch.Tensor | None", "torch.Tensor"], None]
"""attend(layer, qkv [T, heads + 2 kv_heads, dim], q_norm, k_norm, out [T, heads, dim])."""


class Layers:
    """Weights and the order in which they are applied. *Thread safety*: none; `spec` is this device's part."""

    def __init__(
        self,
        spec: DecoderSpec,
        info: ModelInfo,
        weights: DeviceWeights,
        ops: Ops,
        collective: Collective,
        device: torch.device,
    ) -> None:
        import torch

        self._spec, self._weights, self._collective = spec, weights, collective
        self.ops = ops
        self.eps = spec.norm_eps
        self.vocab_size = spec.vocab_size
        self._dtype: torch.dtype = getattr(torch, info.dtype)
        tables = (cos_sin_table(rope, info.max_model_len) for rope in spec.ropes)
        self._ropes = [torch.from_numpy(table).to(device) for table in tables]
        # As transformers: the factor takes the precision of the embeddings it multiplies.
        self._embed_scale = float(torch.tensor(spec.embed_scale).to(self._dtype))
        self._head_widens = _head_widens(self._dtype, device)

    def cos_sin(self, index: int) -> torch.Tensor:
        """Layer `index`'s table of rotations, float32 [max_model_len, rotary_dim]."""
        return self._ropes[self._spec.layers[index].rope]

    @property
    def groups(self) -> tuple[tuple[Mapping[str, int], ...], ...]:
        """Elements per token of the activations, for `StepBuffers`."""
        spec, hidden = self._spec, self._spec.hidden_size
        attention = {
            "qkv": spec.q_size + 2 * spec.kv_size,
            "queries": spec.q_size,
            "attended": spec.q_size,
        }
        mlps = []
        if any(not layer.moe for layer in spec.layers):
            mlps.append({"gate_up": 2 * spec.intermediate_size, "inner": spec.intermediate_size})
        if spec.moe is not None:
            top, inner = spec.moe.top_k, spec.moe.intermediate_size
            mlps.append(
                {"expert_gate_up": 2 * top * inner, "expert_inner": top * inner, "expert_out": top * hidden}
            )
        stream = {"residual": hidden, "normed": hidden, "branch": hidden}
        return ((stream,), (attention, *mlps))

    def embed(self, tokens: torch.Tensor, residual: torch.Tensor) -> None:
        """residual [T, hidden] = the tokens' embeddings, scaled."""
        import torch

        table, shard = self._weights.embedding.tensor, self._collective.shard
        if shard.world == 1:
            torch.index_select(table, 0, tokens, out=residual)
        else:
            local = tokens - shard.vocab_rows(self._spec.vocab_size).start
            rows = len(shard.vocab_rows(self._spec.vocab_size))
            foreign = (local < 0) | (local >= rows)
            torch.index_select(table, 0, local.masked_fill(foreign, 0), out=residual)
            residual.masked_fill_(foreign[:, None], 0)
            self._collective.all_reduce(residual)
        if self._embed_scale != 1.0:
            residual.mul_(self._embed_scale)

    def allocate_experts(self, max_tokens: int, device: torch.device) -> ExpertPlan | None:
        """Room for the routing of so many tokens; None in a dense model."""
        from airi.kernels.expert_plan import ExpertPlan

        moe = self._spec.moe
        return None if moe is None else ExpertPlan.allocate(device, max_tokens * moe.top_k, moe.num_experts)

    def run(
        self,
        tokens: torch.Tensor,
        entries: torch.Tensor,
        buffers: StepBuffers,
        experts: ExpertPlan | None,
        attend: Attend,
    ) -> None:
        """Runs all layers; leaves the residual stream of the tokens in the buffer of that name.

        Tokens whose block-table entry (`entries` int32 [T]) is -1 are padding.
        """
        count = len(tokens)
        residual = buffers.rows("residual", count)
        self.embed(tokens, residual)
        pending: torch.Tensor | None = None
        for index, layer in enumerate(self._weights.layers):
            h = self._enter(pending, residual, layer.attention_norm, buffers)
            branch = self._attention(index, layer, h, buffers, attend)
            pending = self._leave(branch, layer.attention_post_norm, residual)
            h = self._enter(pending, residual, layer.mlp_norm, buffers)
            pending = self._leave(
                self._mlp(layer, h, entries, buffers, experts), layer.mlp_post_norm, residual
            )
        if pending is not None:
            residual.add_(pending)

    def logits(self, buffers: StepBuffers, rows: torch.Tensor, out: torch.Tensor) -> None:
        """out [len(rows), vocab] float32 = the logits of these tokens of the step that ran last."""
        import torch

        spec, most = self._spec, self._weights.head.n
        hidden = buffers.rows("residual", buffers.max_tokens).index_select(0, rows)
        normed = torch.empty_like(hidden)
        self.ops.rms_norm(hidden, self._weights.final_norm.tensor, self.eps, normed)
        whole = self._collective.shard.world == 1 and most == spec.vocab_size
        local = out if whole else torch.empty((len(rows), most), dtype=torch.float32, device=out.device)
        head = self._weights.head.weight.tensor.t()
        if self._head_widens:
            torch.mm(normed, head, out_dtype=torch.float32, out=local)
        else:
            local.copy_(torch.mm(normed, head))
        if not whole:
            out.copy_(self._collective.all_gather(local)[:, : spec.vocab_size])
        if spec.logit_softcap is not None:
            out.div_(spec.logit_softcap).tanh_().mul_(spec.logit_softcap)

    def _enter(
        self,
        pending: torch.Tensor | None,
        residual: torch.Tensor,
        norm: Weight | None,
        buffers: StepBuffers,
    ) -> torch.Tensor:
        """Adds what is pending to the residual stream and gives what a sublayer reads of it."""
        if norm is None:
            return residual if pending is None else residual.add_(pending)
        normed = buffers.rows("normed", len(residual))
        if pending is None:
            self.ops.rms_norm(residual, norm.tensor, self.eps, normed)
        else:
            self.ops.add_rms_norm(pending, residual, norm.tensor, self.eps, normed)
        return normed

    def _leave(
        self, branch: torch.Tensor, norm: Weight | None, residual: torch.Tensor
    ) -> torch.Tensor | None:
        """Adds a sublayer's result to the residual stream, or gives it back for the next norm to add."""
        self._collective.all_reduce(branch)
        if norm is None:
            return branch
        self.ops.rms_norm_add(branch, norm.tensor, self.eps, residual)
        return None

    def _attention(
        self, index: int, layer: DecoderLayer, h: torch.Tensor, buffers: StepBuffers, attend: Attend
    ) -> torch.Tensor:
        spec, count = self._spec, len(h)
        qkv = layer.qkv(h, buffers.rows("qkv", count))
        q_norm = None if layer.q_norm is None else layer.q_norm.tensor
        k_norm = None if layer.k_norm is None else layer.k_norm.tensor
        if spec.qk_norm is QkNorm.FULL_WIDTH and q_norm is not None and k_norm is not None:
            self._full_width_norm(qkv[:, : spec.q_size], q_norm)
            self._full_width_norm(qkv[:, spec.q_size : spec.q_size + spec.kv_size], k_norm)
            q_norm = k_norm = None
        attended = buffers.rows("attended", count)
        attend(
            index,
            qkv.view(count, -1, spec.head_dim),
            q_norm,
            k_norm,
            attended.view(count, -1, spec.head_dim),
        )
        return layer.output(attended, buffers.rows("branch", count))

    def _full_width_norm(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Normalises x [T, width of this part] over the width of all parts, in place."""
        world = self._collective.shard.world
        if world == 1:
            self.ops.rms_norm(x, weight, self.eps, x)
            return
        wide = x.float()
        squares = wide.square().sum(-1, keepdim=True)
        self._collective.all_reduce(squares)
        x.copy_(wide * (squares / (world * x.shape[1]) + self.eps).rsqrt() * weight)

    def _mlp(
        self,
        layer: DecoderLayer,
        h: torch.Tensor,
        entries: torch.Tensor,
        buffers: StepBuffers,
        experts: ExpertPlan | None,
    ) -> torch.Tensor:
        mlp, out = layer.mlp, buffers.rows("branch", len(h))
        if isinstance(mlp, SparseMlp):
            if experts is None:
                raise RuntimeError("a sparse layer in a model without experts")
            return run_experts(self._spec, mlp, h, entries, experts, buffers, self.ops, out)
        gate_up = mlp.gate_up(h, buffers.rows("gate_up", len(h)))
        inner = buffers.rows("inner", len(h))
        self.ops.glu(gate_up, inner, activation=self._spec.activation)
        return mlp.down(inner, out)


def _head_widens(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product of this dtype can be written in float32, without rounding to `dtype` in between."""
    import torch

    if dtype is torch.float32:
        return False
    x = torch.zeros((16, 16), dtype=dtype, device=device)
    try:
        torch.mm(x, x, out_dtype=torch.float32, out=x.float())
    except (NotImplementedError, RuntimeError, TypeError):  # the last one: torch does not know it yet
        return False
    return True
