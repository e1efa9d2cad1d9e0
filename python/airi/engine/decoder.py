"""The one decoder: which tensors a `DecoderSpec` needs, under which names and shapes.

Every backend runs this dataflow (`x` [tokens, hidden] is float32 whatever the weights' dtype):

    x = embed[token] * embed_scale
    for each layer:
        h = norm(x)                      (PRE, SANDWICH)
        q, k, v = h @ qkv.T + bias;      q, k = norm(q), norm(k) if qk_norm;  rotate q, k
        a = attention(q, keys, values) @ output.T + bias
        x = x + a      or  x + norm(a)   (POST, SANDWICH)
        h = norm(x)                      (PRE, SANDWICH)
        m = (act(h @ gate.T) * (h @ up.T)) @ down.T, through the chosen experts in a sparse layer
        x = x + m      or  x + norm(m)
    logits = softcap(norm(x) @ head.T)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airi.engine.checkpoint import Checkpoint, RawTensor
from airi.engine.spec import DecoderSpec, NormPlacement, QkNorm


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer y = x @ W.T + bias; W [n, k] is the concatenation of row blocks."""

    blocks: tuple[RawTensor, ...]
    bias: NDArray[np.float32] | None = None

    @property
    def n(self) -> int:
        return sum(int(block.data.shape[0]) for block in self.blocks)

    @property
    def k(self) -> int:
        return int(self.blocks[0].data.shape[1])

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """A gated MLP: down(act(gate(x)) * up(x))."""

    gate: Matrix
    up: Matrix
    down: Matrix

    @property
    def nbytes(self) -> int:
        return self.gate.nbytes + self.up.nbytes + self.down.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer. Norm weights are float32 factors (Gemma's 1 is added); None where the family has none."""

    attention_norm: NDArray[np.float32] | None
    attention_post_norm: NDArray[np.float32] | None
    mlp_norm: NDArray[np.float32] | None
    mlp_post_norm: NDArray[np.float32] | None
    qkv: Matrix
    q_norm: NDArray[np.float32] | None
    k_norm: NDArray[np.float32] | None
    output: Matrix
    mlp: MlpWeights | None
    """None in a sparse layer."""
    router: Matrix | None
    experts: tuple[MlpWeights, ...]

    @property
    def nbytes(self) -> int:
        matrices = (self.qkv.nbytes, self.output.nbytes, self.mlp.nbytes if self.mlp else 0)
        return sum(matrices) + sum(expert.nbytes for expert in self.experts)


class DecoderWeights:
    """Finds a spec's tensors in a checkpoint. Everything returned is a view, or small.

    Raises `CheckpointError` naming the first tensor that is missing or not of the shape config.json implies.
    *Thread safety*: all methods only read.
    """

    def __init__(self, spec: DecoderSpec, checkpoint: Checkpoint) -> None:
        self.spec = spec
        self.checkpoint = checkpoint
        # An embedder's checkpoint may be of the network alone, without the model around it.
        self._prefix = "" if "embed_tokens.weight" in checkpoint else "model."

    def embedding(self) -> RawTensor:
        """[vocab_size, hidden_size]"""
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        return self.checkpoint.tensor(f"{self._prefix}embed_tokens.weight", shape)

    def head(self) -> Matrix:
        """[vocab_size, hidden_size]; the embedding itself when the two are tied."""
        if self.spec.tie_embeddings:
            return Matrix((self.embedding(),))
        return self._matrix("lm_head", self.spec.vocab_size, self.spec.hidden_size, has_bias=False)

    def final_norm(self) -> NDArray[np.float32]:
        return self._norm(f"{self._prefix}norm", self.spec.hidden_size)

    def layer(self, index: int) -> LayerWeights:
        """The weights of layer `index`."""
        spec, name = self.spec, f"{self._prefix}layers.{index}."
        norms = _NORM_NAMES[spec.norms]
        found = [self._norm(name + norm, spec.hidden_size) if norm else None for norm in norms]
        sparse = spec.layers[index].moe
        q_norm, k_norm = self._qk_norms(name + "self_attn.")
        return LayerWeights(
            attention_norm=found[0],
            attention_post_norm=found[1],
            mlp_norm=found[2],
            mlp_post_norm=found[3],
            qkv=self._qkv(name + "self_attn."),
            q_norm=q_norm,
            k_norm=k_norm,
            output=self._matrix(
                name + "self_attn.o_proj", spec.hidden_size, spec.q_size, has_bias=spec.output_bias
            ),
            mlp=None if sparse else self._dense_mlp(name + "mlp."),
            router=self._router(name) if sparse else None,
            experts=self._experts(name) if sparse else (),
        )

    def _norm(self, name: str, size: int) -> NDArray[np.float32]:
        values = self.checkpoint.tensor(name + ".weight", (size,)).float32()
        return np.ascontiguousarray(values + np.float32(self.spec.norm_offset))

    def _bias(self, name: str, n: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.checkpoint.tensor(name + ".bias", (n,)).float32())

    def _matrix(self, name: str, n: int, k: int, *, has_bias: bool) -> Matrix:
        weight = self.checkpoint.tensor(name + ".weight", (n, k))
        return Matrix((weight,), self._bias(name, n) if has_bias else None)

    def _qkv(self, name: str) -> Matrix:
        spec = self.spec
        if spec.fused_projections:
            width = spec.q_size + 2 * spec.kv_size
            return self._matrix(name + "qkv_proj", width, spec.hidden_size, has_bias=False)
        parts = [
            self._matrix(name + part, size, spec.hidden_size, has_bias=spec.qkv_bias)
            for part, size in (("q_proj", spec.q_size), ("k_proj", spec.kv_size), ("v_proj", spec.kv_size))
        ]
        biases = [part.bias for part in parts if part.bias is not None]
        return Matrix(tuple(part.blocks[0] for part in parts), np.concatenate(biases) if biases else None)

    def _qk_norms(self, name: str) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        spec = self.spec
        if spec.qk_norm is QkNorm.NONE:
            return None, None
        full = spec.qk_norm is QkNorm.FULL_WIDTH
        q_size, k_size = (spec.q_size, spec.kv_size) if full else (spec.head_dim, spec.head_dim)
        return self._norm(name + "q_norm", q_size), self._norm(name + "k_norm", k_size)

    def _dense_mlp(self, name: str) -> MlpWeights:
        spec = self.spec
        hidden, size, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        down = self._matrix(name + "down_proj", hidden, size, has_bias=bias)
        if spec.fused_projections:
            both = self.checkpoint.tensor(name + "gate_up_proj.weight", (2 * size, hidden))
            return MlpWeights(Matrix((both.rows(0, size),)), Matrix((both.rows(size, 2 * size),)), down)
        gate = self._matrix(name + "gate_proj", size, hidden, has_bias=bias)
        return MlpWeights(gate, self._matrix(name + "up_proj", size, hidden, has_bias=bias), down)

    def _router(self, name: str) -> Matrix | None:
        moe = self.spec.moe
        if moe is None:
            return None
        return self._matrix(name + moe.router_name, moe.num_experts, self.spec.hidden_size, has_bias=False)

    def _experts(self, name: str) -> tuple[MlpWeights, ...]:
        moe = self.spec.moe
        if moe is None:
            return ()
        hidden, size = self.spec.hidden_size, moe.intermediate_size
        experts = []
        for index in range(moe.num_experts):
            gate, up, down = (name + part.format(e=index) for part in moe.expert_names)
            experts.append(
                MlpWeights(
                    self._matrix(gate, size, hidden, has_bias=False),
                    self._matrix(up, size, hidden, has_bias=False),
                    self._matrix(down, hidden, size, has_bias=False),
                )
            )
        return tuple(experts)


# Tensor names of: norm before attention, norm of its output, norm before the MLP, norm of its output.
_NORM_NAMES: dict[NormPlacement, tuple[str | None, str | None, str | None, str | None]] = {
    NormPlacement.PRE: ("input_layernorm", None, "post_attention_layernorm", None),
    NormPlacement.POST: (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    NormPlacement.SANDWICH: (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
