"""A checkpoint's weights on the device: fused, cut for this device's part, quantised where asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends import ProgressCallback
from airi.engine.backends.cuda.budget import TooLargeError
from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.ops import Ops
from airi.engine.backends.cuda.quantise import Quantiser
from airi.engine.backends.cuda.shards import Shard, local_spec
from airi.engine.backends.cuda.staging import Stager
from airi.engine.backends.cuda.tensors import FewRows, Linear, Weight
from airi.engine.decoder import LayerWeights, Matrix, MlpWeights
from airi.engine.loader import LoadProgress, OpenedModel
from airi.engine.spec import QkNorm

if TYPE_CHECKING:
    import torch

__all__ = ["DecoderLayer", "DenseMlp", "DeviceWeights", "Experts", "SparseMlp", "load_weights"]


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """down(act(gate(x)) * up(x))."""

    gate_up: Linear
    """[2 * inner, hidden], the gate's rows first."""
    down: Linear

    def weights(self) -> list[Weight]:
        """All that can move."""
        return [*self.gate_up.weights(), *self.down.weights()]


@dataclass(frozen=True, slots=True)
class Experts:
    """One projection of all experts, stacked."""

    weight: Weight
    scales: Weight | None
    """float32 per row where the weight is quantised."""

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and scales as they are now."""
        return self.weight.tensor, None if self.scales is None else self.scales.tensor

    def weights(self) -> list[Weight]:
        """All that can move."""
        return [self.weight] if self.scales is None else [self.weight, self.scales]


@dataclass(frozen=True, slots=True)
class SparseMlp:
    """A mixture of experts: a router and every expert's MLP, stacked."""

    router: Linear
    gate_up: Experts
    """[experts, 2 * inner, hidden]"""
    down: Experts
    """[experts, hidden, inner]"""

    def weights(self) -> list[Weight]:
        """All that can move."""
        return [*self.router.weights(), *self.gate_up.weights(), *self.down.weights()]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One layer; norms are float32 factors, None where the family has none."""

    qkv: Linear
    output: Linear
    mlp: DenseMlp | SparseMlp
    attention_norm: Weight | None
    attention_post_norm: Weight | None
    mlp_norm: Weight | None
    mlp_post_norm: Weight | None
    q_norm: Weight | None
    k_norm: Weight | None

    def weights(self) -> Iterator[Weight]:
        """All that can move."""
        norms = (self.attention_norm, self.attention_post_norm, self.mlp_norm, self.mlp_post_norm)
        for norm in (*norms, self.q_norm, self.k_norm):
            if norm is not None:
                yield norm
        yield from (*self.qkv.weights(), *self.output.weights(), *self.mlp.weights())


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWeights:
    """All weights of one device's part of a model."""

    embedding: Weight
    """[vocab part, hidden]; rows beyond the vocabulary are zero."""
    layers: tuple[DecoderLayer, ...]
    final_norm: Weight
    head: Linear
    """[vocab part, hidden]; shares the embedding's weight when the two are tied."""

    def __iter__(self) -> Iterator[Weight]:
        """Every weight once, always in the same order."""
        yield self.embedding
        for layer in self.layers:
            yield from layer.weights()
        yield self.final_norm
        if self.head.weight is not self.embedding:
            yield self.head.weight


def load_weights(
    opened: OpenedModel,
    device: Device,
    *,
    ops: Ops,
    shard: Shard,
    quantization: str | None,
    progress: ProgressCallback | None,
) -> DeviceWeights:
    """Copies this part's weights from the mapped files to the device; the host holds two small pieces at a time.

    Raises `ConfigError` when quantisation or the cut is impossible, TooLargeError before it begins to copy what cannot
    fit.
    """
    needed = _least_bytes(opened, shard, quantization)
    if needed > device.memory()[0]:
        raise TooLargeError(needed)
    quantiser = Quantiser(quantization, device)
    few_rows = None if quantization is None else FewRows(ops, device.torch_device)
    loader = _Loader(opened, device, shard, quantiser, few_rows)
    weights, spec = opened.weights, opened.spec
    report = LoadProgress(weights.checkpoint.nbytes, progress)
    embedding = loader.vocabulary(Matrix((weights.embedding(),)))
    head = embedding if spec.tie_embeddings else loader.vocabulary(weights.head())
    report.add(weights.embedding().nbytes * (1 if spec.tie_embeddings else 2))
    layers = []
    for index in range(spec.num_layers):
        layer = weights.layer(index)
        layers.append(loader.layer(layer))
        report.add(layer.nbytes)
    final_norm = loader.vector(weights.final_norm())
    loader.stager.finish()
    report.finish()
    return DeviceWeights(embedding=embedding, layers=tuple(layers), final_norm=final_norm, head=Linear(head))


def _least_bytes(opened: OpenedModel, shard: Shard, quantization: str | None) -> int:
    """What the weights take at least: embedding and head are not quantised, scales and padding not counted."""
    spec = opened.spec
    itemsize = 4 if opened.info.dtype == "float32" else 2
    vocabulary = spec.vocab_size * spec.hidden_size * (1 if spec.tie_embeddings else 2)
    others = max(opened.info.num_parameters - vocabulary, 0)
    return (vocabulary * itemsize + others * (1 if quantization else itemsize)) // shard.world


class _Loader:
    def __init__(
        self,
        opened: OpenedModel,
        device: Device,
        shard: Shard,
        quantiser: Quantiser,
        few_rows: FewRows | None,
    ) -> None:
        import torch

        self._spec = opened.spec
        self._local = local_spec(opened.spec, shard)
        self._shard = shard
        self._device = device.torch_device
        self._dtype: torch.dtype = getattr(torch, opened.info.dtype)
        self._quantiser = quantiser
        self._few_rows = few_rows
        self.stager = Stager(device)

    def vocabulary(self, matrix: Matrix) -> Weight:
        """Embedding or head, its part of the vocabulary padded."""
        rows = self._shard.vocab_rows(self._spec.vocab_size)
        target = self._zeros(self._shard.vocab_width(self._spec.vocab_size), matrix.k)
        self.stager.rows(matrix.blocks, target[: len(rows)], [rows], range(matrix.k))
        return Weight(target)

    def vector(self, values: NDArray[np.float32]) -> Weight:
        """A norm's factors, in float32."""
        import torch

        return Weight(torch.from_numpy(values.copy()).to(self._device))

    def layer(self, weights: LayerWeights) -> DecoderLayer:
        """One layer's part."""
        spec, shard = self._spec, self._shard
        norm = self._norm
        q_norm, k_norm = weights.q_norm, weights.k_norm
        if spec.qk_norm is QkNorm.FULL_WIDTH and q_norm is not None and k_norm is not None:
            queries, keys, _ = shard.qkv_rows(spec)
            q_norm = q_norm[queries.start : queries.stop]
            k_norm = k_norm[keys.start - spec.q_size : keys.stop - spec.q_size]
        heads = shard.part(spec.num_heads, "num_attention_heads")
        attended = range(heads.start * spec.head_dim, heads.stop * spec.head_dim)
        return DecoderLayer(
            qkv=self._columns_in(weights.qkv, shard.qkv_rows(spec)),
            output=self._rows_in(weights.output, attended),
            mlp=self._sparse(weights) if weights.mlp is None else self._dense(weights.mlp),
            attention_norm=norm(weights.attention_norm),
            attention_post_norm=norm(weights.attention_post_norm),
            mlp_norm=norm(weights.mlp_norm),
            mlp_post_norm=norm(weights.mlp_post_norm),
            q_norm=norm(q_norm),
            k_norm=norm(k_norm),
        )

    def _norm(self, values: NDArray[np.float32] | None) -> Weight | None:
        return None if values is None else self.vector(values)

    def _columns_in(self, matrix: Matrix, rows: Sequence[range]) -> Linear:
        """A projection of which this part computes some outputs."""
        target = self._empty(sum(len(part) for part in rows), matrix.k)
        self.stager.rows(matrix.blocks, target, rows, range(matrix.k))
        bias = matrix.bias
        if bias is not None:
            bias = np.concatenate([bias[part.start : part.stop] for part in rows])
        return Linear(self._quantiser.projection(Weight(target)), self._bias(bias), self._few_rows)

    def _rows_in(self, matrix: Matrix, columns: range) -> Linear:
        """A projection of which this part knows some inputs; the first part adds the bias."""
        target = self._empty(matrix.n, len(columns))
        self.stager.rows(matrix.blocks, target, [range(matrix.n)], columns)
        bias = matrix.bias if self._shard.rank == 0 else None
        return Linear(self._quantiser.projection(Weight(target)), self._bias(bias), self._few_rows)

    def _bias(self, values: NDArray[np.float32] | None) -> Weight | None:
        return None if values is None else Weight(self.vector(values).tensor.to(self._dtype))

    def _dense(self, mlp: MlpWeights) -> DenseMlp:
        both, inner = _gate_up(mlp), self._shard.part(mlp.gate.n, "intermediate_size")
        rows = [inner, range(mlp.gate.n + inner.start, mlp.gate.n + inner.stop)]
        return DenseMlp(self._columns_in(both, rows), self._rows_in(mlp.down, inner))

    def _sparse(self, weights: LayerWeights) -> SparseMlp:
        """Experts without biases, one below the other; the router is whole everywhere."""
        if weights.router is None or self._local.moe is None:
            raise RuntimeError("a layer without MLP")
        experts, hidden, inner = (
            len(weights.experts),
            self._spec.hidden_size,
            self._local.moe.intermediate_size,
        )
        gate_up = self._empty(experts, 2 * inner, hidden)
        down = self._empty(experts, hidden, inner)
        for index, expert in enumerate(weights.experts):
            part = self._shard.part(expert.gate.n, "moe_intermediate_size")
            below = range(expert.gate.n + part.start, expert.gate.n + part.stop)
            self.stager.rows(_gate_up(expert).blocks, gate_up[index], [part, below], range(hidden))
            self.stager.rows(expert.down.blocks, down[index], [range(hidden)], part)
        router = self._empty(experts, hidden)
        self.stager.rows(weights.router.blocks, router, [range(experts)], range(hidden))
        return SparseMlp(
            Linear(Weight(router)),
            Experts(*self._quantiser.experts(Weight(gate_up))),
            Experts(*self._quantiser.experts(Weight(down))),
        )

    def _empty(self, *shape: int) -> torch.Tensor:
        import torch

        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return self._empty(*shape).zero_()


def _gate_up(mlp: MlpWeights) -> Matrix:
    """Both projections as one, the gate's rows first."""
    biases = [matrix.bias for matrix in (mlp.gate, mlp.up) if matrix.bias is not None]
    return Matrix((*mlp.gate.blocks, *mlp.up.blocks), np.concatenate(biases) if biases else None)
