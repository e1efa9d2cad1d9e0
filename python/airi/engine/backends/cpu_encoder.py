"""Encoders on the CPU kernels: texts of any lengths in one batch, without padding.

A layer's keys and values live in scratch memory of the step, laid out as paged memory is, so that attention is the one
kernel of all models; nothing outlives the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airi._core import cpu
from airi.engine.arena import allocate_arena
from airi.engine.backends import KV_GRANULE, LoadOptions, ModelInfo
from airi.engine.backends.cpu_memory import moved_together
from airi.engine.checkpoint import Checkpoint
from airi.engine.decoder import Matrix
from airi.engine.encoder import EncoderLayerWeights, EncoderSpec, EncoderWeights, Norm, load_encoder_spec
from airi.engine.loader import LoadProgress, refuse_device_options
from airi.engine.vectors import pooled
from airi.errors import ConfigError

__all__ = ["CpuEncoder", "encoder_info", "load_encoder"]

_BLOCK = 16
"""Tokens of a block of the scratch memory."""


def load_encoder(folder: Path, options: LoadOptions) -> CpuEncoder:
    """An encoder packed for the CPU kernels, in float32. Raises CheckpointError or ConfigError."""
    spec = load_encoder_spec(folder)
    checkpoint = Checkpoint(folder)
    info = _info(spec, checkpoint, folder, options)
    return CpuEncoder(spec, info, _pack(spec, EncoderWeights(spec, checkpoint), options))


def encoder_info(folder: Path, options: LoadOptions) -> ModelInfo:
    """What there is to know of an encoder before it is loaded. Raises as `load_encoder`."""
    return _info(load_encoder_spec(folder), Checkpoint(folder), folder, options)


def _info(spec: EncoderSpec, checkpoint: Checkpoint, folder: Path, options: LoadOptions) -> ModelInfo:
    refuse_device_options(options)
    if options.dtype not in ("auto", "float32"):
        raise ConfigError(f"dtype is {options.dtype!r}; encoders compute in float32 on CPUs", field="dtype")
    longest = spec.max_tokens + 1
    wanted = options.max_model_len or longest
    if wanted > longest:
        raise ConfigError(f"max_model_len is {wanted}; {folder} supports at most {longest}")
    return ModelInfo(
        path=folder,
        family=spec.architecture,
        dtype="float32",
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_heads,
        head_dim=spec.head_dim,
        max_model_len=wanted,
        kv_bytes_per_token=0,
        num_parameters=checkpoint.num_elements,
        task="classify" if spec.is_classifier else "embed",
        labels=spec.labels,
        is_multi_label=spec.is_multi_label,
        vector_size=len(spec.labels) or spec.hidden_size,
        digest="" if spec.is_classifier else checkpoint.digest(folder / "config.json"),
        pooling="" if spec.is_classifier else spec.vectors.pooling,
        normalizes=spec.vectors.normalize,
        matryoshka_dimensions=spec.vectors.matryoshka_dimensions,
    )


class _Norm:
    """A norm's arrays, and where they lie: `ndarray.ctypes` takes as long as a norm of a short text."""

    def __init__(self, norm: Norm) -> None:
        self._arrays = norm
        self.weight_at, self.bias_at = norm.weight.ctypes.data, norm.bias.ctypes.data


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: cpu.PackedLinear
    output: cpu.PackedLinear
    output_norm: _Norm
    up: cpu.PackedLinear
    down: cpu.PackedLinear
    down_norm: _Norm

    @property
    def matrices(self) -> tuple[cpu.PackedLinear, ...]:
        return self.qkv, self.output, self.up, self.down


@dataclass(frozen=True, slots=True)
class _Weights:
    tokens: NDArray[np.float32]
    positions: NDArray[np.float32]
    types: NDArray[np.float32]
    embedding_norm: _Norm
    layers: tuple[_Layer, ...]
    dense: cpu.PackedLinear | None
    classifier: cpu.PackedLinear | None
    memory: NDArray[np.uint8]
    """Where the layers' matrices lie."""


def _pack(spec: EncoderSpec, weights: EncoderWeights, options: LoadOptions) -> _Weights:
    report = LoadProgress(weights.checkpoint.nbytes, options.progress)
    layers = []
    for index in range(spec.num_layers):
        found = weights.layer(index)
        layers.append(_pack_layer(found))
        report.add(sum(matrix.nbytes for matrix in (found.qkv, found.output, found.up, found.down)))
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    for matrix, following in pairwise(matrices):
        matrix.precede(following)
    head = weights.head() if spec.is_classifier else None
    packed = _Weights(
        tokens=np.ascontiguousarray(weights.tokens().float32()),
        positions=weights.positions(),
        types=weights.types(),
        embedding_norm=_Norm(weights.embedding_norm()),
        layers=tuple(layers),
        dense=None if head is None else _linear(head.dense),
        classifier=None if head is None else _linear(head.classifier),
        memory=moved_together(matrices),
    )
    report.finish()
    return packed


def _pack_layer(layer: EncoderLayerWeights) -> _Layer:
    return _Layer(
        qkv=_linear(layer.qkv),
        output=_linear(layer.output),
        output_norm=_Norm(layer.output_norm),
        up=_linear(layer.up),
        down=_linear(layer.down),
        down_norm=_Norm(layer.down_norm),
    )


def _linear(matrix: Matrix) -> cpu.PackedLinear:
    arrays = [np.ascontiguousarray(block.float32()) for block in matrix.blocks]
    blocks = [(array.ctypes.data, array.shape[0]) for array in arrays]
    bias = 0 if matrix.bias is None else matrix.bias.ctypes.data
    return cpu.PackedLinear.fused(blocks, matrix.k, cpu.DType.F32, cpu.DType.F32, bias)


class CpuEncoder:
    """An encoder that reads batches of token ids. *Thread safety*: none.

    *Invariant*: a text's result is the same to the last bit whatever else is in its batch.
    """

    def __init__(self, spec: EncoderSpec, info: ModelInfo, weights: _Weights) -> None:
        self.spec = spec
        self.info = info
        self._weights = weights
        self._scratch = _Scratch(spec, 0, 0)

    def bytes_per_block(self, block_size: int) -> int:
        """As `PoolingModel.bytes_per_block`."""
        return self.info.bytes_per_block(block_size)

    def pool(self, tokens: NDArray[np.int32], starts: NDArray[np.int32]) -> NDArray[np.float32]:
        """Vectors [R, hidden], or of a classifier logits [R, labels], of R texts.

        Text r is `tokens[starts[r]:starts[r + 1]]`, special tokens included, with 1 to `spec.max_tokens` of them.
        Raises ValueError for an id outside of the vocabulary.
        """
        cpu.wake_threads()  # which takes as long as what comes before the first product
        count, total = len(starts) - 1, len(tokens)
        lengths = np.diff(starts)
        self._scratch = self._scratch.for_at_least(total, count)
        self._embed(tokens, starts, lengths)
        batch = self._scratch.batch(starts, lengths)
        for layer in self._weights.layers:
            self._layer(layer, batch, total)
        hidden = self._scratch.hidden[:total]
        return (
            self._classified(hidden, starts)
            if self.spec.is_classifier
            else pooled(hidden, starts, self.spec.vectors)
        )

    def _embed(
        self, tokens: NDArray[np.int32], starts: NDArray[np.int32], lengths: NDArray[np.int32]
    ) -> None:
        spec, weights, total = self.spec, self._weights, len(tokens)
        width, at = spec.hidden_size, self._scratch.addresses
        table = weights.tokens.ctypes.data
        ids = np.ascontiguousarray(tokens, np.int32)
        cpu.embed(table, cpu.DType.F32, ids.ctypes.data, total, width, at.hidden, 1.0, spec.vocab_size)
        hidden = self._scratch.hidden[:total]
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=False):
            hidden[start : start + length] += weights.positions[:length]
        hidden += weights.types[self._types(ids, starts)] if spec.num_types > 1 else weights.types[0]
        self._normalise(weights.embedding_norm, total)

    def _types(self, tokens: NDArray[np.int32], starts: NDArray[np.int32]) -> NDArray[np.int64]:
        """[T] 1 for what follows a text's first separator: the second of two texts."""
        types = np.zeros(len(tokens), np.int64)
        if self.spec.separator_id is None:
            return types
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            ends = np.flatnonzero(tokens[start:stop] == self.spec.separator_id)
            if len(ends) > 1:
                types[start + ends[0] + 1 : stop] = 1
        return types

    def _layer(self, layer: _Layer, batch: cpu.PagedBatch, total: int) -> None:
        spec, at, layout = self.spec, self._scratch.addresses, self._scratch.layout
        layer.qkv.forward(at.hidden, total, at.wide)
        cpu.rope_kv_write(batch, layout, 0, at.wide, at.positions, 0, 0, at.queries, spec.num_heads)
        scale = float(spec.head_dim) ** -0.5
        cpu.paged_attention(batch, layout, 0, at.queries, at.attended, spec.num_heads, scale, is_causal=False)
        layer.output.forward_add(at.attended, total, at.hidden)
        self._normalise(layer.output_norm, total)
        layer.up.forward_activated(at.hidden, total, at.wide, spec.activation)
        layer.down.forward_add(at.wide, total, at.hidden)
        self._normalise(layer.down_norm, total)

    def _normalise(self, norm: _Norm, total: int) -> None:
        at, spec = self._scratch.addresses, self.spec
        cpu.layer_norm(norm.weight_at, norm.bias_at, at.hidden, total, spec.hidden_size, spec.norm_eps)

    def _classified(self, hidden: NDArray[np.float32], starts: NDArray[np.int32]) -> NDArray[np.float32]:
        weights, count, width = self._weights, len(starts) - 1, self.spec.hidden_size
        if weights.dense is None or weights.classifier is None:
            raise RuntimeError("a classifier without its head")
        first = np.ascontiguousarray(hidden[starts[:-1]])
        inner = np.empty((count, width), np.float32)
        weights.dense.forward(first.ctypes.data, count, inner.ctypes.data)
        np.tanh(inner, out=inner)
        logits = np.empty((count, len(self.spec.labels)), np.float32)
        weights.classifier.forward(inner.ctypes.data, count, logits.ctypes.data)
        return logits


@dataclass(frozen=True, slots=True)
class _Addresses:
    """Of the scratch buffers: `ndarray.ctypes` costs a microsecond, an attribute does not."""

    hidden: int
    wide: int
    queries: int
    attended: int
    positions: int


class _Scratch:
    """Buffers for batches of up to `tokens` tokens and `texts` texts."""

    def __init__(self, spec: EncoderSpec, tokens: int, texts: int) -> None:
        self._spec = spec
        self._tokens, self._texts = tokens, texts
        width = spec.hidden_size
        # Rows of q, k and v together, then of the MLP's inner half.
        self._wide = np.empty((tokens, max(3 * width, spec.intermediate_size)), np.float32)
        self.hidden = np.empty((tokens, width), np.float32)
        self._queries = np.empty((tokens, width), np.float32)
        self._attended = np.empty((tokens, width), np.float32)
        self._positions = np.zeros(tokens, np.int32)
        self.addresses = _Addresses(
            hidden=self.hidden.ctypes.data,
            wide=self._wide.ctypes.data,
            queries=self._queries.ctypes.data,
            attended=self._attended.ctypes.data,
            positions=self._positions.ctypes.data,
        )
        head = _BLOCK * spec.head_dim * 4
        self._granules = -(-spec.num_heads * 2 * head // KV_GRANULE)
        blocks = tokens // _BLOCK + texts
        self._arena = allocate_arena(max(blocks, 1) * self._granules * KV_GRANULE)
        self.layout = cpu.KvLayout(
            base=self._arena.ctypes.data,
            block_size=_BLOCK,
            num_kv_heads=spec.num_heads,
            head_dim=spec.head_dim,
            dtype=cpu.DType.F32,
            head_stride=2 * head,
            kv_stride=head,
            token_stride=spec.head_dim * 4,
        )
        self._table = np.empty((0, 0), np.int32)
        self._rows: tuple[NDArray[np.int32], ...] = ()

    def for_at_least(self, tokens: int, texts: int) -> _Scratch:
        """This one, or a larger one."""
        if tokens <= self._tokens and texts <= self._texts:
            return self
        return _Scratch(self._spec, max(2 * self._tokens, tokens), max(2 * self._texts, texts))

    def batch(self, starts: NDArray[np.int32], lengths: NDArray[np.int32]) -> cpu.PagedBatch:
        """The step's texts, each in blocks of its own; what it reads lives until the next call."""
        count = len(lengths)
        blocks = -(-lengths // _BLOCK)
        first = np.cumsum(blocks) - blocks
        columns = np.arange(int(blocks.max(initial=1)), dtype=np.int32)
        self._table = ((first[:, None] + columns) * self._granules).astype(np.int32)
        self._rows = (
            np.ascontiguousarray(starts, np.int32),
            np.ascontiguousarray(lengths, np.int32),
            np.arange(count, dtype=np.int32),
        )
        query_start, seq_lens, slots = (array.ctypes.data for array in self._rows)
        return cpu.PagedBatch(
            rows=count,
            tokens=int(starts[-1]),
            query_start=query_start,
            seq_lens=seq_lens,
            slots=slots,
            block_table=self._table.ctypes.data,
            table_stride=self._table.shape[1],
        )
