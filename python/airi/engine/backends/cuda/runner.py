"""Runs the core's batches of one model on a device: everything is enqueued, nothing waits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.arena import format_bytes
from airi.engine.backends import KV_GRANULE, ProgressCallback, StepInputs
from airi.engine.backends.cuda.arena import DeviceArena
from airi.engine.backends.cuda.batch import BatchBuffers, StagedArrays
from airi.engine.backends.cuda.device import Device, Event
from airi.engine.backends.cuda.interface import CudaBinding, CudaModel, CudaStep, TableChanges
from airi.engine.backends.cuda.prompt_logprobs import PromptLogprobs
from airi.engine.backends.cuda.sampler import DeviceSampler, Special
from airi.engine.backends.cuda.sampling_ops import SamplingOps
from airi.engine.memory import Arena
from airi.engine.requests import RequestState
from airi.engine.runner import StepResult
from airi.errors import EngineDeadError

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceRunner", "EnqueuedStep"]

logger = logging.getLogger(__name__)

_ROW_SAMPLE = int(_core.ROW_SAMPLE)
_ROW_FIRST = int(_core.ROW_FIRST)
_ROW_PENDING = int(_core.ROW_PENDING)
_ROW_FAILED = int(_core.RowStatus.FAILED)


@dataclass(slots=True)
class EnqueuedStep:
    """A step that the device has been given, and what its end needs of the host's side of it."""

    arrays: StagedArrays
    result: StepResult
    """Whole but for what comes back from the device."""
    sampling: NDArray[np.intp]
    """[n] rows that sample."""
    has_failed: bool = False
    """Whether it could not be enqueued; then all of its rows have failed."""
    special: Special = field(default_factory=Special)
    prompt_logprobs: PromptLogprobs | None = None

    def finish(self) -> StepResult:
        """What the step gave. To be called once its results have come, before the next but one is planned."""
        result = self.result
        if self.has_failed:
            result.status[:] = _ROW_FAILED
            return result
        n = len(self.sampling)
        result.tokens[:] = self.arrays.sampled[:n]
        result.status[self.sampling] = self.arrays.status[:n]  # 1 is RowStatus.NAN
        result.logprobs = self.special.finish(result.tokens)
        result.status[self.sampling[sorted(self.special.failed)]] = _ROW_FAILED
        if self.prompt_logprobs is not None:
            result.status[self.prompt_logprobs.finish()] = _ROW_FAILED
        return result


class DeviceRunner:
    """Owns a model's block table, slots and last tokens on the device; never decides what runs.

    *Thread safety*: none. *Invariant*: steps are enqueued in the order planned, and everything that one of them needs
    of a slot travels with it or is enqueued before it, so that the next one may give the slot to somebody else while
    this one runs.
    """

    def __init__(
        self,
        index: int,
        model: CudaModel,
        arena: DeviceArena,
        buffers: BatchBuffers,
        device: Device,
        sampling_ops: SamplingOps,
        *,
        enough_memory: Callable[[str], AbstractContextManager[None]],
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        """Binds the model. What needs memory for the thing it is given runs in `enough_memory`, which names errors."""
        import torch

        self.index = index
        self._enough_memory = enough_memory
        self._sampling_ops = sampling_ops
        self.model = model
        self._device = device
        self._buffers = buffers
        self._ops = model.ops
        self._arena = arena
        self._is_set_up = False
        """Whether steps run as they are going to: compiled, and from graphs of where everything lies now."""
        columns = -(-max_model_len // block_size)
        with enough_memory("the block table and what sampling needs"), device.active():
            table = device.zeros(4 * max_num_seqs * columns).view(torch.int32).view(max_num_seqs, columns)
            self._last_tokens = device.zeros(4 * max_num_seqs).view(torch.int32)
            vocab_size = model.info.vocab_size
            self.sampler = DeviceSampler(device, sampling_ops, buffers, max_num_seqs, vocab_size)
        self._binding = CudaBinding(
            arena=arena.memory, block_size=block_size, block_table=table, batch=buffers.batch
        )
        self._generation = arena.generation
        self._bind(self._binding)

    @property
    def block_table(self) -> torch.Tensor:
        """int32 [slots, columns] on the device."""
        return self._binding.block_table

    def _bind(self, binding: CudaBinding) -> None:
        self._is_set_up = False
        with self._enough_memory("workspaces"), self._device.active():
            self.model.bind(binding)

    @contextmanager
    def bound_to(self, arena: Arena) -> Iterator[None]:
        """As `Runner.bound_to`."""
        self._bind(replace(self._binding, arena=arena.part(0, arena.nbytes)))
        try:
            yield
        finally:
            self._bind(self._binding)

    @contextmanager
    def spread_out(self, num_blocks: int) -> Iterator[None]:
        """As `Runner.spread_out`. Steps are measured there: they take what they are going to, and compile nothing."""
        if not self._is_set_up:
            self.set_up(None)
        table = self.block_table
        granules = self.model.bytes_per_block(self._binding.block_size) // KV_GRANULE
        entries = np.arange(table.numel(), dtype=np.int64) % num_blocks * granules
        with self._device.active():
            before = table.flatten().clone()
            self._fill_table(self._device.upload(entries.astype(np.int32)))
        try:
            yield
        finally:
            with self._device.active():
                self._fill_table(before)

    def _fill_table(self, entries: torch.Tensor) -> None:
        """Gives the whole block table these entries [slots * columns], on every device."""
        import torch

        columns = self.block_table.shape[1]
        at = torch.arange(len(entries), dtype=torch.int32, device=entries.device)
        deltas = torch.stack((at // columns, at % columns, entries), 1)
        changes = TableChanges(deltas, at.new_full((1,), len(entries)), at.new_zeros((len(entries), 2)))
        self.model.change_table(changes)

    def run_apart(self, step: StepInputs) -> None:
        """As `Runner.run_apart`: without the sampling, which a step hardly notices."""
        arrays, rows, tokens = self._buffers.apart(), len(step.slots), len(step.tokens)
        arrays.tokens[:tokens] = step.tokens
        arrays.positions[:tokens] = step.positions
        arrays.query_start[: rows + 1] = step.query_start
        arrays.seq_lens[:rows] = step.seq_lens
        arrays.slots[:rows] = step.slots
        arrays.row_flags[:rows] = 0
        arrays.logit_rows[: len(step.logit_rows)] = step.logit_rows
        arrays.pad(rows, tokens, len(step.logit_rows))
        with self._device.active():
            self._buffers.upload(arrays)
            self.model.enqueue(_cuda_step(arrays, rows, tokens, len(step.logit_rows)))
            self._device.record().synchronize()

    def place_weights(self, memory: torch.Tensor) -> None:
        """As `Runner.place_weights`."""
        self._is_set_up = False
        with self._device.active():
            self.model.place_weights(memory)

    def set_up(self, progress: ProgressCallback | None) -> None:
        """As `Runner.set_up`: compiles and captures, with buffers that hold nothing but padding."""
        with self._enough_memory("graphs"), self._device.active():
            self._buffers.clear()
            self._fill_in_pending()
            self.model.change_table(self._buffers.no_changes())
            self.sampler.warm_up()
            self.model.capture(progress)
            self._device.record().synchronize()
        self._is_set_up = True

    def refresh(self) -> None:
        """As `Runner.refresh`: binds anew and captures again."""
        if self._generation != self._arena.generation:
            self._bind(self._binding)
            self.set_up(None)
            self._generation = self._arena.generation  # it is asked for again where memory was missing

    def close(self) -> None:
        """As `Runner.close`."""
        del self.model, self._ops, self._binding, self.sampler, self._last_tokens
        self._device.give_back()

    def enqueue(
        self,
        arrays: StagedArrays,
        *,
        rows: int,
        tokens: int,
        deltas: int,
        states: Mapping[int, RequestState],
        wait: Callable[[Event], None],
    ) -> EnqueuedStep:
        """Gives a planned step to the device. Called inside `Device.active()`.

        Where requests have rules it calls `wait` for the step before, once the device has this one's forward pass.
        What cannot be enqueued fails the step's rows, never the engine, unless other devices are lost with it:
        EngineDeadError.
        """
        sampling = np.flatnonzero(arrays.row_flags[:rows] & _ROW_SAMPLE)
        counts = np.zeros(rows, np.int32)
        counts[sampling] = 1
        result = StepResult(
            model=self.index,
            counts=counts,
            status=np.zeros(rows, np.uint8),
            request_ids=arrays.request_ids[sampling],
            tokens=np.zeros(len(sampling), np.int32),
            draws=arrays.draw_index[sampling],
        )
        step = EnqueuedStep(arrays, result, sampling)
        for row in np.flatnonzero(arrays.row_flags[:rows] & _ROW_FIRST).tolist():
            self.sampler.assign(int(arrays.slots[row]), states[int(arrays.request_ids[row])])
        try:
            self._upload(arrays, rows, tokens, deltas, sampling)
            if rows:  # without any a step brings memory operations and deltas alone
                self._run(step, rows, tokens, wait)
        except EngineDeadError:
            raise
        except Exception as error:
            logger.exception("a step of %d rows and %d tokens failed%s", rows, tokens, self._memory(error))
            step.has_failed = True
        return step

    def _upload(
        self, arrays: StagedArrays, rows: int, tokens: int, deltas: int, sampling: NDArray[np.intp]
    ) -> None:
        arrays.logit_rows[: len(sampling)] = arrays.query_start[1 : rows + 1][sampling] - 1
        arrays.count[0] = deltas
        self.sampler.stage(arrays, sampling)
        arrays.pad(rows, tokens, len(sampling))
        self._buffers.upload(arrays)
        if deltas:
            self._stage_cleared(arrays, rows, deltas)
            self.model.change_table(self._buffers.upload_changes(arrays, deltas))

    def _stage_cleared(self, arrays: StagedArrays, rows: int, deltas: int) -> None:
        """Has the blocks zeroed that the step's rows begin to fill; those of cached prefixes stay.

        Prefill reads whole tiles of values, where weights of 0 do not hide what is not finite; and who had a block
        before may have left that there without ever telling, as a request that was cancelled in its prompt, or taken
        off while its step ran.
        """
        size = self._binding.block_size
        first = np.full(len(self.block_table), np.iinfo(np.int32).max, np.int32)
        first[arrays.slots[:rows]] = arrays.positions[arrays.query_start[:rows]]
        slots, columns, entries = arrays.deltas[:deltas].T
        is_new = columns * size >= first[slots]
        arrays.cleared[:deltas, 0] = entries
        arrays.cleared[:deltas, 1] = is_new * (self.model.bytes_per_block(size) // KV_GRANULE)

    def _run(self, step: EnqueuedStep, rows: int, tokens: int, wait: Callable[[Event], None]) -> None:
        arrays, samples = step.arrays, len(step.sampling)
        self._fill_in_pending()
        logits = self.model.enqueue(_cuda_step(arrays, rows, tokens, samples))
        if samples:
            slots = arrays.slots[step.sampling]
            step.special = self.sampler.sample(logits, slots, step.result.draws, self._last_tokens, wait)
            self._buffers.download(arrays)
            if step.special.constrained is not None:
                step.special.constrained.follow(arrays, self._device.record())
        step.prompt_logprobs = PromptLogprobs.enqueue(
            self._device, self._sampling_ops, self.model, self.sampler, arrays, rows
        )

    def _fill_in_pending(self) -> None:
        """Puts what the step before samples where the plan could not know it."""
        batch = self._buffers.batch
        self._ops.fill_tokens(
            batch.tokens, self._last_tokens, batch.query_start, batch.slots, batch.row_flags, _ROW_PENDING
        )

    def _memory(self, error: Exception) -> str:
        """For errors of missing memory: how much there is."""
        if type(error).__name__ != "OutOfMemoryError":
            return ""
        return f", with {format_bytes(self._device.memory()[0])} of the device's memory free"


def _cuda_step(arrays: StagedArrays, rows: int, tokens: int, logits: int) -> CudaStep:
    return CudaStep(
        num_rows=rows,
        num_tokens=tokens,
        num_logits=logits,
        query_start=arrays.query_start[: rows + 1],
        seq_lens=arrays.seq_lens[:rows],
    )
