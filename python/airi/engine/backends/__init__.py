"""Backends: a checkpoint folder in, logits of a step out.

The step runner knows models only through this module:

    backend = get_backend("cpu")                      # or "reference"; lists them on a wrong name
    model = backend.load_model(path, LoadOptions(dtype="auto", max_model_len=4096, progress=on_bytes))
    model.info                                        # ModelInfo: vocab_size, max_model_len, dtype, ...
    model.bytes_per_block(16)                         # rounded up to the arena's 4096-byte granule
    model.bind_kv(KvBinding(arena=arena, block_size=16, block_table=table, max_batch_tokens=2048))
    logits = model.forward(StepInputs(tokens=..., positions=..., query_start=..., seq_lens=..., slots=...,
                                      logit_rows=...))
    more = model.logits(rows)                         # other rows of the same step (prompt logprobs)

`path` is a local folder; `airi.engine.hub.resolve_model_path` turns `hf://org/name@revision` into one.

A block holds `[layer][kv_head][K|V][token][head_dim]` in the KV dtype (the compute dtype) and starts at byte
`block_table[slot, column] * 4096` of the arena. Loading raises `CheckpointError` or `ConfigError` with one
clear line; `forward` trusts its inputs, which the core has planned. Both are called from one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from airi.errors import ConfigError
from airi.outputs import Task

KV_GRANULE = 4096
"""Bytes that one unit of a block-table entry stands for."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Accepted values of `LoadOptions.dtype`."""

KV_CACHE_DTYPES = ("auto", "fp8", "int8")
"""Accepted values of `LoadOptions.kv_cache_dtype`."""

QUANTIZATIONS = ("fp8", "int8")
"""Accepted values of `LoadOptions.quantization`, beside None."""

ComputeDtype = Literal["float32", "bfloat16", "float16"]

ProgressCallback = Callable[[int, int], None]
"""Called with (bytes loaded so far, bytes in total), from the loading thread, a bounded number of times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a caller may choose about a model.

    `dtype` "auto" keeps the checkpoint's. On CPUs float16 becomes bfloat16, as they do not compute in float16 and
    the memory traffic that decides decoding speed stays the same. `max_model_len` None is the longest the model
    supports. The others are for devices: what keys and values are stored as ("auto": the compute dtype), to what
    weights are quantised, and how many devices share the model.
    """

    dtype: str = "auto"
    max_model_len: int | None = None
    progress: ProgressCallback | None = None
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        for name, accepted in (("dtype", DTYPES), ("kv_cache_dtype", KV_CACHE_DTYPES)):
            value = getattr(self, name)
            if value not in accepted:
                raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(accepted)}", field=name)
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ConfigError(
                f"quantization is {self.quantization!r}; accepted: {', '.join(QUANTIZATIONS)}",
                field="quantization",
            )
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ConfigError(f"max_model_len is {self.max_model_len}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the rest of the engine may know about a loaded model."""

    path: Path
    family: str
    dtype: ComputeDtype
    vocab_size: int
    """Width of a row of logits; may exceed the tokenizer's vocabulary (padded checkpoints)."""
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    kv_bytes_per_token: int
    """Scales of quantised keys and values included."""
    num_parameters: int
    eos_token_ids: tuple[int, ...] = ()
    """From generation_config.json, else config.json."""
    bos_token_id: int | None = None
    kv_cache_dtype: str = "auto"
    """What keys and values are stored as; "auto" is `dtype`."""
    generation_config: dict[str, Any] = field(default_factory=dict)
    """generation_config.json as it is; empty when the folder has none."""
    task: Task = "generate"
    labels: tuple[str, ...] = ()
    """Of a classifier, by output."""
    is_multi_label: bool = False
    """Each label of a classifier holds or does not, whatever the others do."""
    vector_size: int = 0
    """Numbers that a text gives: of its vector, or one per label. 0 where tokens are generated."""
    digest: str = ""
    """Of a model that gives vectors: SHA-256 of its weights and of the shape of its network, hexadecimal."""
    pooling: str = ""
    """How it makes one vector of all tokens': mean, cls."""
    normalizes: bool = False
    """Whether vectors have length 1."""
    matryoshka_dimensions: tuple[int, ...] | None = None
    """Sizes that vectors may be cut to; empty: any; None: none."""

    @property
    def is_pooling(self) -> bool:
        """Whether it reads a text whole and gives numbers, instead of tokens."""
        return self.task != "generate"

    def block_size(self, asked: int) -> int:
        """Tokens of a KV block, where `asked` is the engine's: what reads texts whole keeps each in one."""
        return self.max_model_len if self.is_pooling else asked

    def bytes_per_block(self, block_size: int) -> int:
        """Bytes of one KV block of `block_size` tokens, rounded up to the granule, of which it has at least one."""
        size = self.kv_bytes_per_token * block_size
        return max(-(-size // KV_GRANULE), 1) * KV_GRANULE


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBinding:
    """The memory a model's steps run in. The arrays stay owned by the caller and must outlive the binding."""

    arena: NDArray[np.uint8]
    """[bytes] contiguous, its address a multiple of 64."""
    block_size: int
    """Tokens per block."""
    block_table: NDArray[np.int32]
    """[slots, max_blocks] C-contiguous; an entry is a byte offset in the arena divided by `KV_GRANULE`."""
    max_batch_tokens: int
    """The most tokens one step carries; scratch buffers are sized for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step's batch: R rows (requests) of T tokens in all. C-contiguous int32 views; only read."""

    tokens: NDArray[np.int32]
    """[T]"""
    positions: NDArray[np.int32]
    """[T] position of each token in its sequence."""
    query_start: NDArray[np.int32]
    """[R + 1] row r owns tokens `query_start[r]:query_start[r + 1]`."""
    seq_lens: NDArray[np.int32]
    """[R] keys of each row after this step."""
    slots: NDArray[np.int32]
    """[R] the block table's line of each row."""
    logit_rows: NDArray[np.int32]
    """[n] indices into the T tokens whose logits are wanted; for sampling, the last of each sampling row."""


@runtime_checkable
class PoolingModel(Protocol):
    """Weights of a model that reads texts whole. *Thread safety*: none."""

    @property
    def info(self) -> ModelInfo: ...

    def bytes_per_block(self, block_size: int) -> int:
        """As `ModelInfo.bytes_per_block`."""
        ...

    def pool(self, tokens: NDArray[np.int32], starts: NDArray[np.int32]) -> NDArray[np.float32]:
        """[R, vector_size] of R texts; text r is `tokens[starts[r]:starts[r + 1]]`, special tokens included."""
        ...


class LoadedModel(Protocol):
    """Weights ready to run. *Thread safety*: none; one thread loads, binds and steps."""

    @property
    def info(self) -> ModelInfo: ...

    def bytes_per_block(self, block_size: int) -> int:
        """As `ModelInfo.bytes_per_block`."""
        ...

    def bind_kv(self, binding: KvBinding) -> None:
        """Fixes arena, block table and scratch memory; may be called again with other ones between steps."""
        ...

    def forward(self, step: StepInputs) -> NDArray[np.float32]:
        """Runs the step, writing its keys and values to the arena.

        Returns logits [n, vocab_size] float32, writable, valid until the next call of `forward` or `logits`.
        """
        ...

    def logits(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits [len(rows), vocab_size] of other tokens of the latest step; same validity as `forward`'s."""
        ...


@runtime_checkable
class PlaceableModel(Protocol):
    """A LoadedModel whose weights can lie in memory of the caller."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that `place_weights` needs."""
        ...

    def place_weights(self, memory: NDArray[np.uint8]) -> None:
        """Moves the weights to `memory`, a multiple of 64 in address, which the caller keeps.

        Between steps the caller may use it for something else and put its contents back before the next one.
        """
        ...


class Backend(Protocol):
    """A way to run models on one kind of device."""

    name: str

    def load_model(self, path: Path, options: LoadOptions) -> LoadedModel:
        """Loads a Hugging Face checkpoint folder; raises `CheckpointError` or `ConfigError`."""
        ...


BACKENDS = ("cpu", "reference")
"""Those of the host. A device's is `airi.engine.backends.cuda`, which `Platform` chooses."""


def get_backend(name: str) -> Backend:
    """The backend of the host called `name`; imports only what that backend needs. Others are `Platform`s'."""
    if name == "cpu":
        from airi.engine.backends.cpu import CpuBackend

        return CpuBackend()
    if name == "reference":
        from airi.engine.backends.reference import ReferenceBackend

        return ReferenceBackend()
    raise ConfigError(f"backend is {name!r}; accepted: {', '.join(BACKENDS)}")


__all__ = [
    "BACKENDS",
    "DTYPES",
    "KV_CACHE_DTYPES",
    "KV_GRANULE",
    "QUANTIZATIONS",
    "Backend",
    "ComputeDtype",
    "KvBinding",
    "LoadOptions",
    "LoadedModel",
    "ModelInfo",
    "PlaceableModel",
    "PoolingModel",
    "ProgressCallback",
    "StepInputs",
    "Task",
    "get_backend",
]
