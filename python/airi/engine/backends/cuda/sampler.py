"""From logits to tokens on a device: parameters travel with the step, counts of the penalties stay there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends.cuda.batch import BatchBuffers, SamplingColumns, StagedArrays
from airi.engine.backends.cuda.constrained import ConstrainedRows
from airi.engine.backends.cuda.device import Device, Event
from airi.engine.backends.cuda.penalties import PenaltyCounts
from airi.engine.backends.cuda.sampling_ops import GatheredLogprobs, Penalties, SamplingOps
from airi.engine.constraints import MaskFiller, mask_words
from airi.engine.requests import Feature, RequestState
from airi.engine.sampler import SlotParameters
from airi.outputs import TokenLogprobs

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceSampler", "FetchedLogprobs", "Special"]

logger = logging.getLogger(__name__)

_WARM_UP_ROWS = (1, 2, 16)
"""Kernels are compiled anew for one row, and for multiples of 16."""
_WARM_UP_LOGPROBS = (0, 20)
"""The kernel has lists of two widths, up to 16 alternatives and more."""


@dataclass(frozen=True, slots=True)
class FetchedLogprobs:
    """Log-probabilities of n tokens on their way to the host; whole once the step's event is done."""

    tokens: torch.Tensor
    gathered: GatheredLogprobs

    @classmethod
    def enqueue(cls, device: Device, tokens: torch.Tensor, gathered: GatheredLogprobs) -> FetchedLogprobs:
        """Has them copied."""
        columns = (gathered.logprobs, gathered.ranks, gathered.top_ids, gathered.top_logprobs)
        return cls(device.download(tokens), GatheredLogprobs(*map(device.download, columns)))

    def row(self, index: int, count: int) -> TokenLogprobs:
        """One of them with its `count` likeliest tokens, of those that were asked for."""
        found = self.gathered
        return TokenLogprobs(
            int(self.tokens[index]),
            float(found.logprobs[index]),
            int(found.ranks[index]),
            found.top_ids[index, :count].tolist(),
            found.top_logprobs[index, :count].tolist(),
        )


@dataclass(slots=True)
class Special:
    """What one step's rows with rarer features need once it has run. Indices are among the rows that sample."""

    states: dict[int, RequestState] = field(default_factory=dict)
    logprob_rows: list[int] = field(default_factory=list)
    logprobs: FetchedLogprobs | None = None
    """Of `logprob_rows`."""
    failed: set[int] = field(default_factory=set)
    """Rows whose own parameters could not be applied, or whose tokens must not be."""
    constrained: ConstrainedRows | None = None

    def finish(self, tokens: NDArray[np.int32]) -> dict[int, TokenLogprobs]:
        """Remembers tokens [n] for the penalties and rules; log-probabilities by row, for rows that asked."""
        if self.constrained is not None:
            self.constrained.take()
        for row, state in self.states.items():
            if state.features & Feature.PENALTIES and row not in self.failed:
                state.remember(int(tokens[row]))
        if self.logprobs is None:
            return {}
        return {
            row: self.logprobs.row(index, self.states[row].params.logprobs or 0)
            for index, row in enumerate(self.logprob_rows)
            if row not in self.failed
        }


class DeviceSampler(SlotParameters):
    """As `Sampler`, enqueued.

    *Thread safety*: none. *Invariant*: a row's token depends on its logits, parameters, seed and draw index alone.
    """

    def __init__(
        self, device: Device, ops: SamplingOps, buffers: BatchBuffers, max_num_seqs: int, vocab_size: int
    ) -> None:
        super().__init__(max_num_seqs)
        ops.prepare(max_num_seqs, vocab_size)
        self._vocab_size = vocab_size
        self._device = device
        self._ops = ops
        self._buffers = buffers
        self._counts = PenaltyCounts(device, ops, vocab_size)
        self._filler = MaskFiller(vocab_size, max_num_seqs)
        self._last: ConstrainedRows | None = None
        """Of the last step that had any."""
        self._broken: set[int] = set()
        """Slots whose request could not be given its counts."""

    def warm_up(self) -> None:
        """Enqueues sampling of nothing in particular, so that its kernels are compiled."""
        most = len(self._buffers.sampled)
        for rows in (rows for rows in _WARM_UP_ROWS if rows <= most):
            logits = self._device.zeros(4 * rows * self._vocab_size).view(self._buffers.sampling.top_p.dtype)
            columns = _first(self._buffers.sampling, rows)
            out, status = self._buffers.sampled[:rows], self._buffers.status[:rows]
            self._ops.sample(logits.view(rows, self._vocab_size), columns, out, status)
        self._warm_up_rarer()

    def _warm_up_rarer(self) -> None:
        """What requests ask for one at a time, and all that run would wait for while it is compiled."""
        vocab, first, by = self._vocab_size, self._upload([0], np.int32), self._upload([1.0], np.float32)
        logits = self._device.zeros(4 * vocab).view(by.dtype).view(1, vocab)
        counts = self._device.zeros(4 * vocab).view(first.dtype).view(1, vocab)
        self._ops.start_counts(counts, 0, first, first)
        self._ops.count_tokens(counts, first, first)
        self._ops.penalise(logits, counts, Penalties(first, first, by, by, by))
        self._ops.add_to_logits(logits, first, first, by)
        self._ops.mask_tokens(logits, first, self._device.upload(np.zeros((1, mask_words(vocab)), np.int32)))
        for count in _WARM_UP_LOGPROBS:
            self._ops.gather_logprobs(logits, first, min(count, vocab))

    def assign(self, slot: int, state: RequestState) -> None:
        """As `SlotParameters.assign`; counts of the penalties are enqueued behind what used the slot before."""
        super().assign(slot, state)
        self._broken.discard(slot)
        try:
            self._counts.assign(slot, state)
        except Exception:
            logger.exception("penalties of request %d cannot be counted", state.request_id)
            self._broken.add(slot)

    def stage(self, arrays: StagedArrays, sampling: NDArray[np.intp]) -> None:
        """Writes the parameters of the rows that sample into the set, before it is uploaded."""
        slots, columns = arrays.slots[sampling], arrays.sampling
        self.gather(slots, columns)
        columns.slot[: len(slots)] = slots
        columns.draw[: len(slots)] = arrays.draw_index[sampling]

    def sample(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int32],
        draws: NDArray[np.int32],
        last_tokens: torch.Tensor,
        wait: Callable[[Event], None],
    ) -> Special:
        """Enqueues a token per row of logits [n, vocab], which is changed in place, into the buffers' results.

        `last_tokens` [slots] gets them as well. Rows with rules need the token of the step before on the
        host, which `wait` waits for, before their masks can be computed; by then the model is at work on this one.
        """
        rows, buffers = len(slots), self._buffers
        special = self._special(slots)
        lines = None
        if special.states:
            lines = self._alter(logits, slots, draws, special)
            self._constrain(logits, draws, special, wait)
        columns = _first(buffers.sampling, rows)
        sampled = buffers.sampled[:rows]
        self._ops.sample(logits, columns, sampled, buffers.status[:rows])
        last_tokens.index_copy_(0, columns.slot, sampled)
        if special.states:
            self._after(lines, slots, sampled, special)
        return special

    def _special(self, slots: NDArray[np.int32]) -> Special:
        features = self._features[slots]
        if not features.any() and not self._broken:
            return Special()
        rows = np.flatnonzero(features & ~np.uint8(Feature.PROMPT_LOGPROBS)).tolist()
        special = Special(states={row: self.state(int(slots[row])) for row in rows})
        special.logprob_rows = [row for row, s in special.states.items() if s.features & Feature.LOGPROBS]
        special.failed = {row for row, slot in enumerate(slots.tolist()) if slot in self._broken}
        return special

    def _alter(
        self, logits: torch.Tensor, slots: NDArray[np.int32], draws: NDArray[np.int32], special: Special
    ) -> torch.Tensor | None:
        """Applies penalties, bias and min_tokens; a copy of the rows whose own logits are still needed."""
        lines = None
        if special.logprob_rows:
            lines = logits.index_select(0, self._upload(special.logprob_rows, np.int64))
        penalised = self._rows_with(special, Feature.PENALTIES)
        if penalised:
            penalties = self._penalties(penalised, slots, special)
            self._ops.penalise(logits, self._counts.counts, penalties)
        edits = _edits(special, draws)
        if edits is not None:
            self._ops.add_to_logits(logits, *map(self._device.upload, edits))
        return lines

    def _constrain(
        self,
        logits: torch.Tensor,
        draws: NDArray[np.int32],
        special: Special,
        wait: Callable[[Event], None],
    ) -> None:
        """Bans what the rules of requests do not allow; rows for which that fails fail alone."""
        rows = self._rows_with(special, Feature.MASKED)
        if not rows:
            return
        if self._last is not None:
            self._last.take(wait)
        rules = [special.states[row].needed_rules() for row in rows]
        before = draws[rows].tolist()
        self._filler.begin(rules, before)
        made, masks = self._filler.wait()
        special.failed.update(row for row, could in zip(rows, made, strict=True) if not could)
        self._ops.mask_tokens(logits, self._upload(rows, np.int32), self._device.upload(masks.view(np.int32)))
        special.constrained = self._last = ConstrainedRows(rows, rules, before, masks.copy(), special.failed)

    def _rows_with(self, special: Special, feature: Feature) -> list[int]:
        return [
            row
            for row, state in special.states.items()
            if state.features & feature and row not in special.failed
        ]

    def _penalties(self, rows: Sequence[int], slots: NDArray[np.int32], special: Special) -> Penalties:
        params = [special.states[row].params for row in rows]
        return Penalties(
            rows=self._upload(rows, np.int32),
            lines=self._upload([self._counts.line(int(slots[row])) for row in rows], np.int32),
            repetition=self._upload([p.repetition_penalty for p in params], np.float32),
            presence=self._upload([p.presence_penalty for p in params], np.float32),
            frequency=self._upload([p.frequency_penalty for p in params], np.float32),
        )

    def _after(
        self, lines: torch.Tensor | None, slots: NDArray[np.int32], sampled: torch.Tensor, special: Special
    ) -> None:
        """Counts tokens for the penalties and takes log-probabilities where asked for."""
        penalised = self._rows_with(special, Feature.PENALTIES)
        if penalised:
            tokens = sampled.index_select(0, self._upload(penalised, np.int64))
            self._counts.add([int(slots[row]) for row in penalised], tokens)
        if lines is not None:
            count = max(special.states[row].params.logprobs or 0 for row in special.logprob_rows)
            tokens = sampled.index_select(0, self._upload(special.logprob_rows, np.int64))
            gathered = self._ops.gather_logprobs(lines, tokens, count)
            special.logprobs = FetchedLogprobs.enqueue(self._device, tokens, gathered)

    def _upload(self, values: Sequence[float], dtype: type[np.generic]) -> torch.Tensor:
        return self._device.upload(np.array(values, dtype))


def _first(columns: SamplingColumns, rows: int) -> SamplingColumns:
    return SamplingColumns(
        columns.slot[:rows],
        columns.draw[:rows],
        columns.temperature[:rows],
        columns.top_k[:rows],
        columns.top_p[:rows],
        columns.min_p[:rows],
        columns.seed[:rows],
    )


def _edits(
    special: Special, draws: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]] | None:
    """(rows, ids, what is added to the logits there) of bias and min_tokens; None where there are none.

    A row for which that fails fails alone.
    """
    found: list[tuple[int, int, float]] = []
    for row, state in special.states.items():
        try:
            found += [(row, token, value) for token, value in _row_edits(state, int(draws[row])).items()]
        except Exception:
            logger.exception("sampling failed for request %d alone", state.request_id)
            special.failed.add(row)
    if not found:
        return None
    rows, ids, values = zip(*found, strict=True)
    return np.array(rows, np.int32), np.array(ids, np.int32), np.array(values, np.float32)


def _row_edits(state: RequestState, draw: int) -> dict[int, float]:
    edits: dict[int, float] = {}
    if state.features & Feature.BIAS:
        edits.update(zip(state.bias_ids.tolist(), state.bias_values.tolist(), strict=True))
    if state.features & Feature.MIN_TOKENS and draw < state.params.min_tokens:
        edits.update(dict.fromkeys(state.stop_ids.tolist(), -np.inf))
    return edits
