"""Embedders that are decoders, on the CPU kernels: texts of any lengths in one batch, without padding.

The network is that of `cpu.py`; keys and values live in scratch memory of one layer, and nothing outlives the step.
Which checkpoints are such is told by sentence-transformers' `modules.json` beside them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airi._core import cpu
from airi.engine.arena import allocate_arena
from airi.engine.backends import KV_GRANULE, KvBinding, LoadOptions, ModelInfo, StepInputs
from airi.engine.backends.cpu import BoundDecoder, check_head_dim
from airi.engine.backends.cpu_weights import CpuWeights, pack_weights
from airi.engine.config_json import JsonFields, read_json
from airi.engine.loader import OpenedModel, open_model
from airi.engine.rope import cos_sin_table
from airi.engine.spec import DecoderSpec
from airi.engine.vectors import VectorSpec, load_vector_spec, pooled
from airi.errors import ConfigError

__all__ = ["CpuEmbedder", "embedder_info", "gives_vectors", "load_embedder"]

_BLOCK = 16
"""Tokens of a block of the scratch memory."""


def gives_vectors(folder: Path) -> bool:
    """Whether a decoder's folder says how its states become a vector."""
    return (folder / "modules.json").is_file()


def load_embedder(folder: Path, options: LoadOptions) -> CpuEmbedder:
    """An embedder packed for the CPU kernels. Raises CheckpointError or ConfigError."""
    opened, vectors = _open(folder, options)
    weights = pack_weights(opened, options.progress, has_head=False)
    return CpuEmbedder(opened.spec, opened.info, vectors, weights)


def embedder_info(folder: Path, options: LoadOptions) -> ModelInfo:
    """What there is to know of an embedder before it is loaded. Raises as `load_embedder`."""
    return _open(folder, options)[0].info


def _open(folder: Path, options: LoadOptions) -> tuple[OpenedModel, VectorSpec]:
    opened = open_model(folder, dataclasses.replace(options, max_model_len=None))
    check_head_dim(folder, opened.spec)
    path = folder / "config.json"
    info, width = opened.info, opened.spec.hidden_size
    vectors = load_vector_spec(folder, JsonFields(read_json(path), str(path)), width)
    longest = min(info.max_model_len, vectors.max_tokens or info.max_model_len) + 1
    wanted = options.max_model_len or longest
    if wanted > longest:
        raise ConfigError(f"max_model_len is {wanted}; {folder} supports at most {longest}")
    info = dataclasses.replace(
        info,
        max_model_len=wanted,
        kv_bytes_per_token=0,
        generation_config={},
        task="embed",
        vector_size=width,
        digest=opened.weights.checkpoint.digest(path),
        pooling=vectors.pooling,
        normalizes=vectors.normalize,
        matryoshka_dimensions=vectors.matryoshka_dimensions,
    )
    return dataclasses.replace(opened, info=info), vectors


class CpuEmbedder:
    """A decoder that reads batches of token ids. *Thread safety*: none.

    *Invariant*: a text sees nothing of the others in its batch.
    """

    def __init__(self, spec: DecoderSpec, info: ModelInfo, vectors: VectorSpec, weights: CpuWeights) -> None:
        self.info = info
        self._spec = spec
        self._vectors = vectors
        self._weights = weights
        self._ropes = [cos_sin_table(rope, info.max_model_len) for rope in spec.ropes]
        layer = spec.num_kv_heads * 2 * _BLOCK * spec.head_dim * np.dtype(weights.numpy_dtype).itemsize
        self._granules = -(-layer // KV_GRANULE)
        self._bind(0, 1, 1)

    def bytes_per_block(self, block_size: int) -> int:
        """As `PoolingModel.bytes_per_block`."""
        return self.info.bytes_per_block(block_size)

    def pool(self, tokens: NDArray[np.int32], starts: NDArray[np.int32]) -> NDArray[np.float32]:
        """Vectors [R, hidden] of R texts; text r is `tokens[starts[r]:starts[r + 1]]`, special tokens included.

        Raises ValueError for an id outside of the vocabulary.
        """
        starts = np.ascontiguousarray(starts, np.int32)
        lengths = np.diff(starts)
        total = len(tokens)
        self._place(lengths, total)
        self._bound.run(
            StepInputs(
                tokens=np.ascontiguousarray(tokens, np.int32),
                positions=(np.arange(total) - np.repeat(starts[:-1], lengths)).astype(np.int32),
                query_start=starts,
                seq_lens=lengths,
                slots=np.arange(len(lengths), dtype=np.int32),
                logit_rows=np.empty(0, np.int32),
            )
        )
        width, norm = self._spec.hidden_size, self._weights.final_norm.ctypes.data
        states, hidden = np.empty((total, width), np.float32), self._bound.hidden.ctypes.data
        cpu.rms_norm(hidden, norm, states.ctypes.data, cpu.DType.F32, total, width, self._spec.norm_eps)
        return pooled(states, starts, self._vectors)

    def _place(self, lengths: NDArray[np.int32], total: int) -> None:
        """Gives each text blocks of its own."""
        blocks = -(-lengths // _BLOCK)
        rows, columns = len(lengths), int(blocks.max(initial=1))
        if total > self._tokens or rows > self._table.shape[0] or columns > self._table.shape[1]:
            most_rows, most_columns = self._table.shape
            self._bind(
                max(2 * self._tokens, total) if total > self._tokens else self._tokens,
                max(2 * most_rows, rows) if rows > most_rows else most_rows,
                max(columns, most_columns),
            )
        first = np.cumsum(blocks) - blocks
        self._table[:rows, :columns] = (first[:, None] + np.arange(columns)) * self._granules

    def _bind(self, tokens: int, rows: int, columns: int) -> None:
        """Memory for so many tokens in so many texts, the longest of so many blocks."""
        self._tokens = tokens
        self._table = np.zeros((rows, columns), np.int32)
        blocks = tokens // _BLOCK + rows
        binding = KvBinding(
            arena=allocate_arena(blocks * self._granules * KV_GRANULE),
            block_size=_BLOCK,
            block_table=self._table,
            max_batch_tokens=tokens,
        )
        self._bound = BoundDecoder(self._spec, self._weights, binding, self._ropes, keeps_kv=False)
