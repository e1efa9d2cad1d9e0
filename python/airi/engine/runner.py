"""Runs the core's batches of one model: block tables, forward, sampling, log-probabilities."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.backends import (
    KV_GRANULE,
    KvBinding,
    LoadedModel,
    PlaceableModel,
    ProgressCallback,
    StepInputs,
)
from airi.engine.memory import Arena, HostArena
from airi.engine.requests import Feature, RequestState
from airi.engine.sampler import Sampler, gather_logprobs
from airi.outputs import TokenLogprobs

__all__ = ["ModelRunner", "StepArrays", "StepResult", "apply_ops"]

logger = logging.getLogger(__name__)

_ROW_SAMPLE = int(_core.ROW_SAMPLE)
_ROW_FIRST = int(_core.ROW_FIRST)
_ROW_PENDING = int(_core.ROW_PENDING)
_ZERO = int(_core.MemoryOpKind.ZERO)
_ROW_FAILED = int(_core.RowStatus.FAILED)

# Rows of prompt log-probabilities whose logits are made at a time: at most 64 MiB of them.
_LOGITS_BYTES = 64 * 2**20


@dataclass(slots=True)
class StepArrays:
    """One buffer set that the core fills with a step; see `_core.StepBuffers` for the columns."""

    request_ids: NDArray[np.int64]
    slots: NDArray[np.int32]
    query_start: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    row_flags: NDArray[np.uint8]
    draw_index: NDArray[np.int32]
    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    deltas: NDArray[np.int32]
    ops: NDArray[np.int64]

    @classmethod
    def allocate(cls, rows: int, tokens: int, deltas: int, ops: int = 0) -> StepArrays:
        """Zeroed arrays for at most this many rows, tokens, table deltas and memory operations."""
        return cls(
            request_ids=np.zeros(rows, np.int64),
            slots=np.zeros(rows, np.int32),
            query_start=np.zeros(rows + 1, np.int32),
            seq_lens=np.zeros(rows, np.int32),
            row_flags=np.zeros(rows, np.uint8),
            draw_index=np.zeros(rows, np.int32),
            tokens=np.zeros(tokens, np.int32),
            positions=np.zeros(tokens, np.int32),
            deltas=np.zeros((deltas, 3), np.int32),
            ops=np.zeros((ops, 5), np.int64),
        )

    def as_buffers(self) -> _core.StepBuffers:
        """The same arrays, for the core to write into."""
        return _core.StepBuffers(**{field.name: getattr(self, field.name) for field in fields(StepArrays)})


@dataclass(slots=True)
class StepResult:
    """What a step's rows came to: the columns of `Runtime.commit` and what outputs are made of."""

    model: int
    counts: NDArray[np.int32]
    """[rows] tokens of each row"""
    status: NDArray[np.uint8]
    """[rows]"""
    request_ids: NDArray[np.int64]
    """[n] of the rows that sampled"""
    tokens: NDArray[np.int32]
    """[n], also what is committed: one per row that sampled"""
    draws: NDArray[np.int32]
    """[n] tokens that the request had before"""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By index into the n."""
    vectors: NDArray[np.float32] | None = None
    """[n, vector_size] of a model that gives numbers, whose tokens mean nothing."""

    def tokens_of(self, request_id: int) -> list[int]:
        """The token that this step gave a request, if it gave one."""
        tokens: list[int] = self.tokens[self.request_ids == request_id].tolist()
        return tokens

    def only(self, kept: NDArray[np.bool_]) -> StepResult:
        """The same without some of the rows that sampled: `kept` [n]. What is committed is not what is left."""
        places = {old: new for new, old in enumerate(np.flatnonzero(kept).tolist())}
        return replace(
            self,
            request_ids=self.request_ids[kept],
            tokens=self.tokens[kept],
            draws=self.draws[kept],
            logprobs={places[i]: values for i, values in self.logprobs.items() if i in places},
            vectors=None if self.vectors is None else self.vectors[kept],
        )


def apply_ops(arena: NDArray[np.uint8], ops: NDArray[np.int64]) -> None:
    """Executes the memory operations [n, 5] of a step, in order: kind, id, from, to, granules."""
    for kind, _, start, _, granules in ops.tolist():
        if kind != _ZERO:
            raise ValueError(f"memory operation {kind} is not one of this device")
        arena[start * KV_GRANULE : (start + granules) * KV_GRANULE] = 0


class ModelRunner:
    """Owns a loaded model's block table and slots; never decides what runs.

    `run` may go on in another thread while the next step is planned: it touches nothing of the core.
    *Thread safety*: none; steps are taken over and run in the order planned.
    """

    def __init__(
        self,
        index: int,
        model: LoadedModel,
        arena: HostArena,
        *,
        block_size: int,
        max_num_seqs: int,
        max_batch_tokens: int,
        max_model_len: int,
    ) -> None:
        self.index = index
        self.model = model
        self._vocab_size = model.info.vocab_size
        columns = -(-max_model_len // block_size)
        self.block_table = np.zeros((max_num_seqs, columns), np.int32)
        self.sampler = Sampler(max_num_seqs, self._vocab_size)
        self._last_tokens = np.zeros(max_num_seqs, np.int32)
        """By slot: what was sampled there last."""
        self._binding = KvBinding(
            arena=arena.array,
            block_size=block_size,
            block_table=self.block_table,
            max_batch_tokens=max_batch_tokens,
        )
        model.bind_kv(self._binding)

    @contextmanager
    def bound_to(self, arena: Arena) -> Iterator[None]:
        """Has steps run in another arena meanwhile. None may have been taken over."""
        self.model.bind_kv(replace(self._binding, arena=arena.part(0, arena.nbytes)))
        try:
            yield
        finally:
            self.model.bind_kv(self._binding)

    @contextmanager
    def spread_out(self, num_blocks: int) -> Iterator[None]:
        """Meanwhile has each block of each slot another one of the arena's first so many, as far as they go."""
        before = self.block_table.copy()
        granules = self.model.bytes_per_block(self._binding.block_size) // KV_GRANULE
        self.block_table[:] = (np.arange(before.size) % num_blocks * granules).reshape(before.shape)
        try:
            yield
        finally:
            self.block_table[:] = before

    def run_apart(self, step: StepInputs) -> None:
        """Runs a step that is not the core's."""
        self.model.forward(step)

    def place_weights(self, memory: NDArray[np.uint8]) -> None:
        """Moves the model's weights to a part of the arena."""
        if not isinstance(self.model, PlaceableModel):
            raise TypeError("a model that keeps its weights to itself has a home for them")
        self.model.place_weights(memory)

    def set_up(self, progress: ProgressCallback | None) -> None:
        """Nothing: this model is ready once it is bound."""

    def refresh(self) -> None:
        """Nothing: memory of the host stays where it is when it is released."""

    def close(self) -> None:
        """Lets the model go. No step may follow."""
        del self.model, self._binding

    def take_over(
        self, arrays: StepArrays, *, rows: int, deltas: int, states: Mapping[int, RequestState]
    ) -> None:
        """Makes a planned step the next to run: applies its table deltas and gives new rows their slots.

        The step before has run.
        """
        if deltas:
            changed = arrays.deltas[:deltas]
            self.block_table[changed[:, 0], changed[:, 1]] = changed[:, 2]
        for row in np.flatnonzero(arrays.row_flags[:rows] & _ROW_FIRST).tolist():
            self.sampler.assign(int(arrays.slots[row]), states[int(arrays.request_ids[row])])

    def run(self, arrays: StepArrays, *, rows: int, tokens: int) -> StepResult:
        """Runs the step taken over last. A failing model fails the step's rows, never the engine."""
        self._fill_in_pending(arrays, rows)
        sampling = np.flatnonzero(arrays.row_flags[:rows] & _ROW_SAMPLE)
        query_start = arrays.query_start[: rows + 1]
        step = StepInputs(
            tokens=arrays.tokens[:tokens],
            positions=arrays.positions[:tokens],
            query_start=query_start,
            seq_lens=arrays.seq_lens[:rows],
            slots=arrays.slots[:rows],
            logit_rows=query_start[1:][sampling] - 1,
        )
        counts = np.zeros(rows, np.int32)
        counts[sampling] = 1
        status = np.zeros(rows, np.uint8)
        slots = arrays.slots[sampling]
        draws = arrays.draw_index[sampling]
        logprobs: dict[int, TokenLogprobs] = {}
        tokens_out = np.zeros(len(sampling), np.int32)
        try:
            self.sampler.prepare(slots, draws)
            # Without rows a step brings memory operations alone.
            logits = self.model.forward(step) if rows else np.zeros((0, self._vocab_size), np.float32)
            sampled = self.sampler.sample(logits, slots, draws)
            tokens_out, logprobs = sampled.tokens.copy(), sampled.logprobs
            self._last_tokens[slots] = tokens_out
            status[sampling] = sampled.is_nan  # 1 is RowStatus.NAN
            status[sampling[list(sampled.failed)]] = _ROW_FAILED
            self._prompt_logprobs(step, status)
        except Exception:
            logger.exception("a step of %d rows and %d tokens failed", rows, tokens)
            status[:] = _ROW_FAILED
        return StepResult(
            model=self.index,
            counts=counts,
            status=status,
            request_ids=arrays.request_ids[sampling],
            tokens=tokens_out,
            draws=draws,
            logprobs=logprobs,
        )

    def _fill_in_pending(self, arrays: StepArrays, rows: int) -> None:
        """Puts what the step before sampled where the plan could not know it."""
        pending = np.flatnonzero(arrays.row_flags[:rows] & _ROW_PENDING)
        arrays.tokens[arrays.query_start[pending]] = self._last_tokens[arrays.slots[pending]]

    def _prompt_logprobs(self, step: StepInputs, status: NDArray[np.uint8]) -> None:
        """Takes the log-probabilities of prompt tokens whose predecessors this step computed.

        A row for which that fails fails alone, in `status` [rows].
        """
        features = self.sampler.features(step.slots)
        wanted = np.flatnonzero(features & int(Feature.PROMPT_LOGPROBS)).tolist()
        for row in wanted:
            state = self.sampler.state(int(step.slots[row]))
            first = int(step.query_start[row])
            positions = step.positions[first : int(step.query_start[row + 1])]
            # Position p predicts prompt token p + 1; chunks computed again after a preemption are known.
            begin = max(int(positions[0]) + 1, len(state.prompt_logprobs))
            end = min(int(positions[-1]) + 2, len(state.prompt))
            offset = first - int(positions[0]) - 1
            try:
                self._extend_prompt_logprobs(state, begin, end, offset)
            except Exception:
                logger.exception("prompt log-probabilities failed for request %d alone", state.request_id)
                status[row] = _ROW_FAILED

    def _extend_prompt_logprobs(self, state: RequestState, begin: int, end: int, offset: int) -> None:
        """Appends entries `begin` to `end` of the prompt; entry p comes from the step's token p + offset."""
        piece = max(1, _LOGITS_BYTES // (4 * self._vocab_size))
        count = state.params.prompt_logprobs or 0
        for start in range(begin, end, piece):
            stop = min(end, start + piece)
            lines = self.model.logits(np.arange(start + offset, stop + offset, dtype=np.int32))
            state.prompt_logprobs += gather_logprobs(lines, state.prompt[start:stop], count)
