"""What the runner of a device and a model on it agree on.

    backend = CudaBackend(device)          # in .model; `Device` is in .device
    model = backend.load_model(path, LoadOptions(...))   # weights on the device
    model.bind(binding)                    # arena, block table and fixed metadata buffers, once
    model.place_weights(memory)            # only where they live in the arena
    model.capture(progress)                # compiles kernels, captures a graph per bucket
    model.change_table(changes)            # before the step that they are of
    logits = model.enqueue(step)           # [n, vocab] on the device; nothing waits for it
    more = model.logits(rows)              # other tokens of the same step (prompt log-probabilities)

Everything is called from one thread inside `Device.active()`, which makes the engine's stream current: what is
enqueued there runs in order, and nobody synchronises. The runner owns the fixed buffers of `DeviceBatch` and has
copied the step's metadata into them, on the stream, before it calls `enqueue`. `CudaStep` says on the host how much
of them counts; the padding up to their ends is always valid (see there), so that a model may run a decoding step in
any larger bucket of rows without touching them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends import ModelInfo, ProgressCallback

if TYPE_CHECKING:
    import torch


__all__ = ["CudaBinding", "CudaModel", "CudaStep", "DeviceBatch", "TableChanges", "TokenOps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """Fixed device buffers that hold the metadata of the step that runs; all models of a device share them.

    Their addresses never change, so graphs may be captured over them. *Invariant*, at any time of the stream: beyond
    the R rows and T tokens of the step, `query_start` stays at T, `seq_lens`, `slots`, `row_flags` and `logit_rows`
    are 0, `tokens` and `positions` hold ids and positions that are valid (old ones). `map_tokens` gives -1 there.
    """

    tokens: torch.Tensor
    """int32 [max_tokens]; what the step before sampled is filled in already."""
    positions: torch.Tensor
    """int32 [max_tokens]"""
    query_start: torch.Tensor
    """int32 [max_rows + 1]"""
    seq_lens: torch.Tensor
    """int32 [max_rows] keys of each row after this step."""
    slots: torch.Tensor
    """int32 [max_rows] lines of the block table."""
    row_flags: torch.Tensor
    """uint8 [max_rows] as `_core.StepBuffers.row_flags`."""
    logit_rows: torch.Tensor
    """int32 [max_rows] tokens whose logits are wanted, `CudaStep.num_logits` of them."""

    @property
    def max_rows(self) -> int:
        """Rows of a step at most, padding included: no bucket is larger."""
        return len(self.seq_lens)

    @property
    def max_tokens(self) -> int:
        """Tokens of a step at most, padding included; at least `max_rows`."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaBinding:
    """The memory that a model's steps run in. The runner keeps it alive."""

    arena: torch.Tensor
    """uint8 [bytes] on the device; an entry of the block table times 4096 is an offset in it, as int64."""
    block_size: int
    """Tokens per block."""
    block_table: torch.Tensor
    """int32 [slots, columns] on the device, contiguous; its columns hold the longest sequence that comes."""
    batch: DeviceBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaStep:
    """How much of `DeviceBatch` a step uses, and host copies of what decides how it is run."""

    num_rows: int
    num_tokens: int
    num_logits: int
    """The first that many of `DeviceBatch.logit_rows` count; 0 in a step of unfinished prompts only."""
    query_start: NDArray[np.int32]
    """[num_rows + 1]; host memory, read before `enqueue` returns."""
    seq_lens: NDArray[np.int32]
    """[num_rows]; host memory, read before `enqueue` returns."""

    @property
    def is_decode(self) -> bool:
        """Whether every row brings exactly one token."""
        return self.num_tokens == self.num_rows


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What becomes of a model's block table, and of blocks that are new in it. On the device."""

    deltas: torch.Tensor
    """int32 [n, 3] (slot, column, entry)"""
    count: torch.Tensor
    """int32 [1] how many of them apply."""
    cleared: torch.Tensor
    """int32 [n, 2] (first granule, how many) to be zeroed in the arena; 0 for none."""


class TokenOps(Protocol):
    """Those of `Ops` that the runner uses itself."""

    def fill_tokens(
        self,
        tokens: torch.Tensor,
        last_tokens: torch.Tensor,
        query_start: torch.Tensor,
        slots: torch.Tensor,
        row_flags: torch.Tensor,
        pending_flag: int,
    ) -> None:
        """As `Ops.fill_tokens`."""
        ...


class CudaModel(Protocol):
    """Weights on a device, ready to run. *Thread safety*: none; called inside `Device.active()`."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def ops(self) -> TokenOps:
        """What the runner uses of the operations that run on this model's device."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that `place_weights` moves."""
        ...

    def bytes_per_block(self, block_size: int) -> int:
        """Bytes of a KV block in the KV dtype with its scales, a multiple of 4096."""
        ...

    def bind(self, binding: CudaBinding) -> None:
        """Fixes arena, block table and metadata buffers, and allocates all workspaces.

        May be called again with others while no step runs; graphs captured before are dropped then.
        """
        ...

    def place_weights(self, memory: torch.Tensor) -> None:
        """Moves `weight_bytes` of weights into uint8 device memory, aligned to 4096, which the caller keeps.

        Between steps the caller may use it for something else and put its contents back before the next one; graphs
        captured after this stay valid.
        """
        ...

    def capture(self, progress: ProgressCallback | None) -> None:
        """Compiles what steps need and captures graphs; tells (done, total) buckets.

        Called once after `bind` and `place_weights`, with `DeviceBatch` all padding, so that nothing is written to the
        arena. A model that was never captured runs all the same, without graphs.
        """
        ...

    def change_table(self, changes: TableChanges) -> None:
        """Enqueues the changes of the bound block table, and that what they clear holds zeros, on every device that
        has a part of the model."""
        ...

    def enqueue(self, step: CudaStep) -> torch.Tensor:
        """Enqueues the step, which writes its keys and values to the arena.

        Returns logits [num_logits, vocab] of float32, bfloat16 or float16 on the device, contiguous rows, writable,
        valid until the next `enqueue` or `logits`. Never waits for the device.
        """
        ...

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits [len(rows), vocab] of other tokens of the latest step, as `enqueue` gives them.

        `rows`: int32 on the device, indices of the step's tokens.
        """
        ...
