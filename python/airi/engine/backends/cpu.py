"""The CPU backend: the decoder on `airi._core.cpu`'s kernels.

Addresses and sizes cross to the kernels, no tensors; torch is not imported. Activations live in scratch buffers
allocated once by `bind_kv`, so a step of a dense model only calls kernels, eight or so per layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airi._core import cpu
from airi.engine.backends import KvBinding, LoadedModel, LoadOptions, ModelInfo, StepInputs
from airi.engine.backends.cpu_memory import bytes_together, move_together
from airi.engine.backends.cpu_weights import CpuLayer, CpuSparseMlp, CpuWeights, pack_weights
from airi.engine.loader import open_model
from airi.engine.rope import cos_sin_table
from airi.engine.spec import DecoderSpec, LayerSpec
from airi.errors import ConfigError

_MAX_HEAD_DIM = 256


class CpuBackend:
    """Runs models on the CPU with the kernels for its instruction set."""

    name = "cpu"

    def load_model(self, path: Path, options: LoadOptions) -> LoadedModel:
        """As `Backend.load_model`."""
        opened = open_model(path, options)
        check_head_dim(path, opened.spec)
        weights = pack_weights(opened, options.progress)
        return CpuModel(opened.spec, opened.info, weights)


def check_head_dim(path: Path, spec: DecoderSpec) -> None:
    """Raises ConfigError for heads that the kernels do not take."""
    if spec.head_dim % 8 or spec.head_dim > _MAX_HEAD_DIM:
        raise ConfigError(
            f"{path}: head_dim is {spec.head_dim}; accepted: multiples of 8 up to {_MAX_HEAD_DIM}"
        )


class CpuModel:
    """A model packed for the CPU kernels. *Thread safety*: none.

    *Invariant*: between `bind_kv` calls no buffer moves, so every address handed to a kernel stays right.
    """

    def __init__(self, spec: DecoderSpec, info: ModelInfo, weights: CpuWeights) -> None:
        self._spec = spec
        self._info = info
        self._weights = weights
        self._ropes = [cos_sin_table(rope, info.max_model_len) for rope in spec.ropes]
        self._bound: BoundDecoder | None = None
        self._logit_rows = _LogitRows(0, spec, weights)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def bytes_per_block(self, block_size: int) -> int:
        return self._info.bytes_per_block(block_size)

    @property
    def weight_bytes(self) -> int:
        """As `PlaceableModel.weight_bytes`: packed matrices; embeddings and norms stay where they are."""
        return bytes_together(list(self._weights.packed()))

    def place_weights(self, memory: NDArray[np.uint8]) -> None:
        """As `PlaceableModel.place_weights`."""
        move_together(list(self._weights.packed()), memory)

    def bind_kv(self, binding: KvBinding) -> None:
        self._bound = BoundDecoder(self._spec, self._weights, binding, self._ropes)

    def forward(self, step: StepInputs) -> NDArray[np.float32]:
        self._bound_or_raise().run(step)
        return self.logits(step.logit_rows)

    def logits(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        if len(rows) > self._logit_rows.capacity:
            self._logit_rows = _LogitRows(len(rows), self._spec, self._weights)
        return self._logit_rows.compute(self._bound_or_raise().hidden, rows)

    def _bound_or_raise(self) -> BoundDecoder:
        if self._bound is None:
            raise RuntimeError("bind_kv must be called before forward")
        return self._bound


class _LogitRows:
    """Final norm and output head over chosen rows of the residual stream."""

    def __init__(self, capacity: int, spec: DecoderSpec, weights: CpuWeights) -> None:
        self.capacity = capacity
        if weights.head is None:
            raise ValueError("weights without a head give no logits")
        self._head = weights.head
        self._spec = spec
        self._weights = weights
        self._gathered = np.empty((capacity, spec.hidden_size), np.float32)
        self._normed = np.empty((capacity, spec.hidden_size), weights.numpy_dtype)
        self._logits = np.empty((capacity, spec.vocab_size), np.float32)

    def compute(self, hidden: NDArray[np.float32], rows: NDArray[np.int32]) -> NDArray[np.float32]:
        count, width, weights = len(rows), self._spec.hidden_size, self._weights
        out = self._logits[:count]
        if count:
            gathered, normed = self._gathered.ctypes.data, self._normed.ctypes.data
            cpu.gather_rows(hidden.ctypes.data, 4 * width, rows.ctypes.data, count, gathered)
            norm = weights.final_norm.ctypes.data
            cpu.rms_norm(gathered, norm, normed, weights.dtype, count, width, self._spec.norm_eps)
            self._head.forward(normed, count, out.ctypes.data)
        cap = self._spec.logit_softcap
        if cap is not None:
            np.divide(out, cap, out=out)
            np.tanh(out, out=out)
            np.multiply(out, cap, out=out)
        return out


class BoundDecoder:
    """The model tied to one arena, block table and set of scratch buffers."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: CpuWeights,
        binding: KvBinding,
        ropes: list[NDArray[np.float32]],
        *,
        keeps_kv: bool = True,
    ) -> None:
        """Without `keeps_kv` all layers use the memory of one: nobody asks for keys and values of earlier steps."""
        self._spec = spec
        self._weights = weights
        self._binding = binding
        tokens, activation = binding.max_batch_tokens, weights.numpy_dtype
        inner = max(layer.mlp.inner for layer in weights.layers)
        self.hidden = np.empty((tokens, spec.hidden_size), np.float32)
        self._normed = np.empty((tokens, spec.hidden_size), activation)
        self._qkv = np.empty((tokens, spec.q_size + 2 * spec.kv_size), np.float32)
        self._queries = np.empty((tokens, spec.q_size), activation)
        self._attended = np.empty((tokens, spec.q_size), activation)
        self._inner = np.empty((tokens, inner), activation)
        # What a sublayer adds to the residual stream, where a norm or expert weights come in between.
        self._branch = np.empty((tokens, spec.hidden_size), np.float32)
        self._wide = np.empty((tokens, spec.q_size), np.float32)
        self._addresses = _Addresses(self)
        itemsize = self._normed.itemsize
        token, head = spec.head_dim * itemsize, binding.block_size * spec.head_dim * itemsize
        self._layout = cpu.KvLayout(
            base=binding.arena.ctypes.data,
            block_size=binding.block_size,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype=weights.dtype,
            head_stride=2 * head,
            kv_stride=head,
            token_stride=token,
        )
        self._layer_bytes = spec.num_kv_heads * 2 * head if keeps_kv else 0
        self._ropes = [(table.ctypes.data, table.shape[1]) for table in ropes]

    def run(self, step: StepInputs) -> None:
        """Runs all layers; leaves the residual stream of the step's tokens in `hidden`."""
        spec, table, m = self._spec, self._binding.block_table, len(step.tokens)
        batch = cpu.PagedBatch(
            rows=len(step.seq_lens),
            tokens=m,
            query_start=step.query_start.ctypes.data,
            seq_lens=step.seq_lens.ctypes.data,
            slots=step.slots.ctypes.data,
            block_table=table.ctypes.data,
            table_stride=table.shape[1],
        )
        positions, embedding = step.positions.ctypes.data, self._weights.embedding
        cpu.embed(
            embedding.ctypes.data,
            self._weights.dtype,
            step.tokens.ctypes.data,
            m,
            spec.hidden_size,
            self._addresses.hidden,
            self._weights.embed_scale,
            spec.vocab_size,
        )
        offset = 0
        for layer, layer_spec in zip(self._weights.layers, spec.layers, strict=True):
            self._attention(layer, layer_spec, batch, offset, positions, m)
            self._mlp(layer, m)
            offset += self._layer_bytes

    def _attention(
        self,
        layer: CpuLayer,
        layer_spec: LayerSpec,
        batch: cpu.PagedBatch,
        offset: int,
        positions: int,
        m: int,
    ) -> None:
        spec, at = self._spec, self._addresses
        layer.qkv.forward(self._normalise(layer.attention_norm, m), m, at.qkv)
        if layer.full_q_norm is not None:
            self._normalise_qk(layer, m)
        cos_sin, rotary_dim = self._ropes[layer_spec.rope]
        heads, layout = spec.num_heads, self._layout
        cpu.rope_kv_write(
            batch,
            layout,
            offset,
            at.qkv,
            positions,
            cos_sin,
            rotary_dim,
            at.queries,
            heads,
            layer.head_q_norm,
            layer.head_k_norm,
            spec.norm_eps,
        )
        window, cap = layer_spec.window or 0, spec.attention_softcap or 0.0
        cpu.paged_attention(
            batch, layout, offset, at.queries, at.attended, heads, spec.attention_scale, window, cap
        )
        if layer.attention_post_norm:
            layer.output.forward(at.attended, m, at.branch)
            self._add_branch(layer.attention_post_norm, m)
        else:
            layer.output.forward_add(at.attended, m, at.hidden)

    def _mlp(self, layer: CpuLayer, m: int) -> None:
        at, mlp = self._addresses, layer.mlp
        x = self._normalise(layer.mlp_norm, m)
        if isinstance(mlp, CpuSparseMlp):
            branch = self._branch[:m]
            mlp.forward(self._normed[:m], x, branch)
            if layer.mlp_post_norm:
                self._add_branch(layer.mlp_post_norm, m)
            else:
                self.hidden[:m] += branch
            return
        mlp.glu.forward(x, m, at.inner)
        if layer.mlp_post_norm:
            mlp.down.forward(at.inner, m, at.branch)
            self._add_branch(layer.mlp_post_norm, m)
        else:
            mlp.down.forward_add(at.inner, m, at.hidden)

    def _normalise(self, weight: int, m: int) -> int:
        """The address of the residual stream in the compute dtype, normalised unless `weight` is 0."""
        at, spec = self._addresses, self._spec
        if weight:
            cpu.rms_norm(
                at.hidden, weight, at.normed, self._weights.dtype, m, spec.hidden_size, spec.norm_eps
            )
            return at.normed
        if self._weights.dtype is cpu.DType.BF16:
            cpu.to_bf16(at.hidden, at.normed, m * spec.hidden_size)
            return at.normed
        return at.hidden

    def _add_branch(self, weight: int, m: int) -> None:
        at, spec = self._addresses, self._spec
        cpu.rms_norm_add(at.branch, weight, at.hidden, m, spec.hidden_size, spec.norm_eps)

    def _normalise_qk(self, layer: CpuLayer, m: int) -> None:
        """OLMo-2: norms over the full width of queries and keys, in place in the qkv rows."""
        spec, at = self._spec, self._addresses
        start, row = 0, self._qkv.shape[1]
        for norm, width in ((layer.full_q_norm, spec.q_size), (layer.full_k_norm, spec.kv_size)):
            if norm is None:
                continue
            wide = self._wide.reshape(-1)[: m * width].reshape(m, width)
            source = at.qkv + 4 * start
            cpu.rms_norm(source, norm.ctypes.data, at.wide, cpu.DType.F32, m, width, spec.norm_eps, row)
            self._qkv[:m, start : start + width] = wide
            start += width


class _Addresses:
    """Addresses of the scratch buffers: `ndarray.ctypes` costs a microsecond, an attribute does not."""

    __slots__ = ("attended", "branch", "hidden", "inner", "normed", "qkv", "queries", "wide")

    def __init__(self, bound: BoundDecoder) -> None:
        self.hidden = bound.hidden.ctypes.data
        self.normed = bound._normed.ctypes.data
        self.qkv = bound._qkv.ctypes.data
        self.queries = bound._queries.ctypes.data
        self.attended = bound._attended.ctypes.data
        self.inner = bound._inner.ctypes.data
        self.branch = bound._branch.ctypes.data
        self.wide = bound._wide.ctypes.data
