"""Packs a checkpoint's weights for the CPU kernels, straight from the mapped files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airi._core import cpu
from airi.engine.backends import ProgressCallback
from airi.engine.checkpoint import RawTensor
from airi.engine.decoder import LayerWeights, Matrix, MlpWeights
from airi.engine.loader import LoadProgress, OpenedModel
from airi.engine.spec import MoeSpec, QkNorm


@dataclass(frozen=True, slots=True)
class CpuDenseMlp:
    """down(act(gate(x)) * up(x)) on packed weights."""

    glu: cpu.PackedGLU
    down: cpu.PackedLinear

    @property
    def inner(self) -> int:
        """Width between the two."""
        return self.glu.n

    def packed(self) -> Iterator[cpu.PackedLinear | cpu.PackedGLU]:
        """Both."""
        yield self.glu
        yield self.down


class CpuSparseMlp:
    """A mixture of experts. Routing and the weighted sum are numpy; each expert runs on the rows routed to it.

    *Invariant*: a row's result is a sum in order of expert index, so in float32 it does not depend on the batch.
    """

    def __init__(self, moe: MoeSpec, router: cpu.PackedLinear, experts: tuple[CpuDenseMlp, ...]) -> None:
        self._moe = moe
        self._router = router
        self._experts = experts
        self.inner = experts[0].inner

    def packed(self) -> Iterator[cpu.PackedLinear | cpu.PackedGLU]:
        """The router and all experts."""
        yield self._router
        for expert in self._experts:
            yield from expert.packed()

    def forward(self, rows: NDArray[Any], x: int, out: NDArray[np.float32]) -> None:
        """out [m, hidden] float32 of rows [m, hidden] in the compute dtype; x is the address of the rows."""
        m, hidden = out.shape
        chosen, weights = self._route(x, m)
        out[:] = 0.0
        itemsize = rows.itemsize
        for index in np.unique(chosen):
            expert = self._experts[index]
            tokens, ranks = np.nonzero(chosen == index)
            count, picked = len(tokens), tokens.astype(np.int32)
            gathered = np.empty((count, hidden), rows.dtype)
            inner = np.empty((count, expert.inner), rows.dtype)
            result = np.empty((count, hidden), np.float32)
            cpu.gather_rows(x, hidden * itemsize, picked.ctypes.data, count, gathered.ctypes.data)
            expert.glu.forward(gathered.ctypes.data, count, inner.ctypes.data)
            expert.down.forward(inner.ctypes.data, count, result.ctypes.data)
            result *= weights[tokens, ranks, None]
            out[tokens] += result

    def _route(self, x: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The chosen experts [m, top_k] of each row, best first, and their weights."""
        scores = np.empty((m, self._moe.num_experts), np.float32)
        self._router.forward(x, m, scores.ctypes.data)
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, : self._moe.top_k]
        weights = np.take_along_axis(scores, chosen, axis=1)
        if self._moe.normalize_top_k:
            weights /= weights.sum(axis=1, keepdims=True)
        return chosen, weights


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLayer:
    """One packed layer. Norms that kernels take are addresses of `norms`' arrays, 0 where there is none."""

    qkv: cpu.PackedLinear
    output: cpu.PackedLinear
    mlp: CpuDenseMlp | CpuSparseMlp
    attention_norm: int
    attention_post_norm: int
    mlp_norm: int
    mlp_post_norm: int
    head_q_norm: int
    head_k_norm: int
    full_q_norm: NDArray[np.float32] | None
    full_k_norm: NDArray[np.float32] | None
    norms: tuple[NDArray[np.float32] | None, ...]
    """Keeps the arrays behind the addresses alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuWeights:
    """All packed weights of a model."""

    dtype: cpu.DType
    numpy_dtype: Any
    """The array type that holds activations of `dtype`: float32, or uint16 for the bits of bfloat16."""
    embedding: NDArray[Any]
    """[vocab, hidden] in the compute dtype; a view of the mapped file when it is stored so."""
    embed_scale: float
    layers: tuple[CpuLayer, ...]
    final_norm: NDArray[np.float32]
    head: cpu.PackedLinear | None
    """None in an embedder."""

    def packed(self) -> Iterator[cpu.PackedLinear | cpu.PackedGLU]:
        """Every packed matrix, always in the same order."""
        for layer in self.layers:
            yield layer.qkv
            yield layer.output
            yield from layer.mlp.packed()
        if self.head is not None:
            yield self.head


def pack_weights(
    opened: OpenedModel, progress: ProgressCallback | None, *, has_head: bool = True
) -> CpuWeights:
    """Packs every layer; each kernel's packing runs on the kernels' own threads."""
    spec, weights = opened.spec, opened.weights
    packer = _Packer(opened)
    report = LoadProgress(weights.checkpoint.nbytes, progress)
    embedding = weights.embedding()
    head = packer.linear(weights.head()) if has_head else None
    report.add(embedding.nbytes if spec.tie_embeddings or not has_head else 2 * embedding.nbytes)
    layers = []
    for index in range(spec.num_layers):
        layer = weights.layer(index)
        layers.append(packer.layer(layer))
        report.add(layer.nbytes)
    report.finish()
    is_bf16 = packer.dtype is cpu.DType.BF16
    scale = np.array([spec.embed_scale], np.float32)
    if is_bf16:  # as transformers: the factor takes the precision of the embeddings it multiplies
        scale = RawTensor("scale", "BF16", RawTensor("scale", "F32", scale).bfloat16()).float32()
    return CpuWeights(
        dtype=packer.dtype,
        numpy_dtype=np.uint16 if is_bf16 else np.float32,
        embedding=embedding.bfloat16() if is_bf16 else embedding.float32(),
        embed_scale=float(scale[0]),
        layers=tuple(layers),
        final_norm=weights.final_norm(),
        head=head,
    )


class _Packer:
    def __init__(self, opened: OpenedModel) -> None:
        self._spec = opened.spec
        self.dtype = cpu.DType.BF16 if opened.info.dtype == "bfloat16" else cpu.DType.F32

    def linear(self, matrix: Matrix) -> cpu.PackedLinear:
        stored, arrays = _same_dtype(matrix.blocks)
        blocks = [(array.ctypes.data, array.shape[0]) for array in arrays]
        return cpu.PackedLinear.fused(blocks, matrix.k, stored, self.dtype, _address(matrix.bias))

    def mlp(self, weights: MlpWeights) -> CpuDenseMlp:
        stored, (gate, up) = _same_dtype((*weights.gate.blocks, *weights.up.blocks))
        glu = cpu.PackedGLU(
            gate.ctypes.data,
            up.ctypes.data,
            weights.gate.n,
            weights.gate.k,
            stored,
            self.dtype,
            self._spec.activation,
            _address(weights.gate.bias),
            _address(weights.up.bias),
        )
        return CpuDenseMlp(glu, self.linear(weights.down))

    def layer(self, weights: LayerWeights) -> CpuLayer:
        per_head = self._spec.qk_norm is QkNorm.PER_HEAD
        full = self._spec.qk_norm is QkNorm.FULL_WIDTH
        moe = self._spec.moe
        mlp: CpuDenseMlp | CpuSparseMlp
        if weights.mlp is not None:
            mlp = self.mlp(weights.mlp)
        elif moe is not None and weights.router is not None:
            experts = tuple(self.mlp(expert) for expert in weights.experts)
            mlp = CpuSparseMlp(moe, self.linear(weights.router), experts)
        else:
            raise RuntimeError("a layer without MLP")
        return CpuLayer(
            qkv=self.linear(weights.qkv),
            output=self.linear(weights.output),
            mlp=mlp,
            attention_norm=_address(weights.attention_norm),
            attention_post_norm=_address(weights.attention_post_norm),
            mlp_norm=_address(weights.mlp_norm),
            mlp_post_norm=_address(weights.mlp_post_norm),
            head_q_norm=_address(weights.q_norm) if per_head else 0,
            head_k_norm=_address(weights.k_norm) if per_head else 0,
            full_q_norm=weights.q_norm if full else None,
            full_k_norm=weights.k_norm if full else None,
            norms=(
                weights.attention_norm,
                weights.attention_post_norm,
                weights.mlp_norm,
                weights.mlp_post_norm,
                weights.q_norm,
                weights.k_norm,
            ),
        )


def _address(array: NDArray[np.float32] | None) -> int:
    return 0 if array is None else array.ctypes.data


def _same_dtype(blocks: tuple[RawTensor, ...]) -> tuple[cpu.DType, list[NDArray[Any]]]:
    """The blocks as arrays of one dtype that the kernels read: bfloat16 if all are stored so, else float32."""
    if all(block.dtype == "BF16" for block in blocks):
        return cpu.DType.BF16, [block.data for block in blocks]
    return cpu.DType.F32, [np.ascontiguousarray(block.float32()) for block in blocks]
