"""From logits to tokens: parameters as columns per slot, one vectorised call, extra work only for rows that ask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airi._core import cpu
from airi.engine.constraints import MaskFiller
from airi.engine.requests import Feature, RequestState
from airi.errors import ExecutionError
from airi.outputs import TokenLogprobs

__all__ = ["Sampled", "Sampler", "SlotParameters", "gather_logprobs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one step's sampling gave, row by row. Views, valid until the next call."""

    tokens: NDArray[np.int32]
    """[n]"""
    is_nan: NDArray[np.uint8]
    """[n] 1 where the logits held not-a-number; the token means nothing then."""
    logprobs: dict[int, TokenLogprobs]
    """By row, for rows that asked."""
    failed: set[int]
    """Rows whose own parameters could not be applied; their tokens mean nothing."""


class SlotParameters:
    """Sampling parameters of a model's slots, as columns. *Thread safety*: none."""

    def __init__(self, max_num_seqs: int) -> None:
        self._states: list[RequestState | None] = [None] * max_num_seqs
        self._features = np.zeros(max_num_seqs, np.uint8)
        self._temperature = np.zeros(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int32)
        self._top_p = np.ones(max_num_seqs, np.float32)
        self._min_p = np.zeros(max_num_seqs, np.float32)
        self._seed = np.zeros(max_num_seqs, np.uint64)

    def assign(self, slot: int, state: RequestState) -> None:
        """Gives `slot` to a request, until another gets it."""
        params = state.params
        self._states[slot] = state
        self._features[slot] = int(state.features)
        self._temperature[slot] = params.temperature
        self._top_k[slot] = params.top_k
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seed[slot] = state.seed

    def state(self, slot: int) -> RequestState:
        """The request that `slot` was last given to."""
        state = self._states[slot]
        if state is None:
            raise RuntimeError(f"slot {slot} was never assigned")
        return state

    def features(self, slots: NDArray[np.int32]) -> NDArray[np.uint8]:
        """[n] `Feature` bits of the requests in `slots` [n]."""
        return self._features[slots]

    def gather(self, slots: NDArray[np.int32], into: ParameterColumns) -> None:
        """Copies the parameters of `slots` [n] into the first n of each column."""
        for source, target in (
            (self._temperature, into.temperature),
            (self._top_k, into.top_k),
            (self._top_p, into.top_p),
            (self._min_p, into.min_p),
            (self._seed, into.seed),
        ):
            source.take(slots, out=target[: len(slots)], mode="clip")


class ParameterColumns(Protocol):
    """One step's rows of parameters, each of at least as many elements."""

    @property
    def temperature(self) -> NDArray[np.float32]: ...

    @property
    def top_k(self) -> NDArray[np.int32]: ...

    @property
    def top_p(self) -> NDArray[np.float32]: ...

    @property
    def min_p(self) -> NDArray[np.float32]: ...

    @property
    def seed(self) -> NDArray[np.uint64]: ...


class Sampler(SlotParameters):
    """Sampling parameters of a model's slots, and the sampling itself.

    *Thread safety*: none. *Invariant*: a row's token depends on its logits, parameters, seed and draw index
    alone, never on the other rows of the batch; what fails for one row's parameters fails that row only.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        super().__init__(max_num_seqs)
        self._vocab_size = vocab_size
        self._gathered = _Columns(max_num_seqs)
        self._filler = MaskFiller(vocab_size, max_num_seqs)
        self._masks: dict[int, NDArray[np.uint32] | None] = {}
        """Of the rows of the step that is sampled, by row; None where one could not be made."""
        self._masked: list[int] = []

    def prepare(self, slots: NDArray[np.int32], draws: NDArray[np.int32]) -> None:
        """Starts on what the next `sample`, of the same rows, needs beside their logits."""
        features = self._features[slots]
        self._masked = np.flatnonzero(features & int(Feature.MASKED)).tolist()
        if self._masked:
            states = [self.state(int(slots[row])) for row in self._masked]
            self._filler.begin([state.needed_rules() for state in states], draws[self._masked].tolist())

    def sample(
        self, logits: NDArray[np.float32], slots: NDArray[np.int32], draws: NDArray[np.int32]
    ) -> Sampled:
        """One token per row of `logits` [n, vocab], which is changed in place. Comes after `prepare`.

        `slots` [n] and `draws` [n] (how many tokens the request had before) say whose rows they are.
        """
        rows = len(slots)
        if not rows:  # a step of prefill chunks only
            return Sampled(self._gathered.tokens[:0], self._gathered.is_nan[:0], {}, set())
        features = self._features[slots]
        special = np.flatnonzero(features).tolist() if features.any() else []
        failed: set[int] = set()
        self._masks = {}
        if self._masked:
            made, masks = self._filler.wait()
            self._masks = {row: masks[i] if made[i] else None for i, row in enumerate(self._masked)}
        raw = self._alter(logits, slots, draws, special, failed) if special else {}
        columns = self._gathered
        self.gather(slots, columns)
        columns.draws[:rows] = draws
        cpu.sample(logits.ctypes.data, rows, self._vocab_size, *columns.addresses)
        tokens = columns.tokens[:rows]
        logprobs = self._after(logits, raw, slots, draws, tokens, special, failed) if special else {}
        return Sampled(tokens, columns.is_nan[:rows], logprobs, failed)

    def _alter(
        self,
        logits: NDArray[np.float32],
        slots: NDArray[np.int32],
        draws: NDArray[np.int32],
        special: Sequence[int],
        failed: set[int],
    ) -> dict[int, NDArray[np.float32]]:
        """Applies penalties, bias and min_tokens; returns copies of the rows whose own logits are still needed.

        Rows for which that fails are added to `failed`.
        """
        raw: dict[int, NDArray[np.float32]] = {}
        for row in special:
            state = self.state(int(slots[row]))
            if not state.features & Feature.ALTERS_LOGITS:
                continue
            if state.features & Feature.MASKED and state.needed_rules().is_exhausted:
                failed.add(row)
                continue
            line = logits[row]
            if state.features & Feature.LOGPROBS:
                raw[row] = line.copy()
            try:
                self._alter_row(line, state, int(draws[row]))
                if state.features & Feature.MASKED:
                    mask = self._mask(row)
                    cpu.apply_token_mask(line.ctypes.data, self._vocab_size, mask.ctypes.data, len(mask))
            except Exception:
                _fail(row, state, failed)
        return raw

    def _alter_row(self, line: NDArray[np.float32], state: RequestState, draw: int) -> None:
        params = state.params
        if state.features & Feature.PENALTIES:
            cpu.apply_penalties(
                line.ctypes.data,
                self._vocab_size,
                state.prompt.ctypes.data,
                len(state.prompt),
                state.generated.ctypes.data,
                state.num_generated,
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            )
        if state.features & Feature.BIAS:
            cpu.apply_bias(
                line.ctypes.data,
                self._vocab_size,
                state.bias_ids.ctypes.data,
                state.bias_values.ctypes.data,
                len(state.bias_ids),
            )
        if state.features & Feature.MIN_TOKENS and draw < params.min_tokens:
            line[state.stop_ids] = -np.inf

    def _mask(self, row: int) -> NDArray[np.uint32]:
        mask = self._masks[row]
        if mask is None:
            raise ExecutionError("no mask could be made")
        return mask

    def _after(
        self,
        logits: NDArray[np.float32],
        raw: dict[int, NDArray[np.float32]],
        slots: NDArray[np.int32],
        draws: NDArray[np.int32],
        tokens: NDArray[np.int32],
        special: Sequence[int],
        failed: set[int],
    ) -> dict[int, TokenLogprobs]:
        """Remembers tokens for the penalties and takes log-probabilities where asked for.

        Rows for which that fails are added to `failed`; those that are in it already are left out.
        """
        logprobs: dict[int, TokenLogprobs] = {}
        for row in special:
            if row in failed:
                continue
            state = self.state(int(slots[row]))
            try:
                if state.features & Feature.PENALTIES:
                    state.remember(int(tokens[row]))
                if state.features & Feature.MASKED and not self._gathered.is_nan[row]:
                    state.needed_rules().push(int(draws[row]), int(tokens[row]), self._mask(row))
                if state.features & Feature.LOGPROBS:
                    line = raw.get(row, logits[row])[None]
                    count = state.params.logprobs or 0
                    logprobs[row] = gather_logprobs(line, tokens[row : row + 1], count)[0]
            except Exception:
                _fail(row, state, failed)
        return logprobs


def _fail(row: int, state: RequestState, failed: set[int]) -> None:
    """Notes that `row` ends here; called where its exception is caught."""
    logger.exception("sampling failed for request %d alone", state.request_id)
    failed.add(row)


class _Columns:
    """Scratch columns of one step, gathered from the slots; their addresses never change."""

    def __init__(self, rows: int) -> None:
        self.temperature = np.empty(rows, np.float32)
        self.top_k = np.empty(rows, np.int32)
        self.top_p = np.empty(rows, np.float32)
        self.min_p = np.empty(rows, np.float32)
        self.seed = np.empty(rows, np.uint64)
        self.draws = np.empty(rows, np.int32)
        self.tokens = np.empty(rows, np.int32)
        self.is_nan = np.zeros(rows, np.uint8)
        columns = (self.temperature, self.top_k, self.top_p, self.min_p, self.seed, self.draws)
        self.addresses = tuple(column.ctypes.data for column in (*columns, self.tokens, self.is_nan))


def gather_logprobs(lines: NDArray[np.float32], tokens: NDArray[np.int32], count: int) -> list[TokenLogprobs]:
    """Log-probability and rank of `tokens` [n] under logits `lines` [n, vocab], and of the `count` likeliest."""
    rows, vocab_size = lines.shape
    logprobs = np.empty(rows, np.float32)
    ranks = np.empty(rows, np.int32)
    top_ids = np.empty((rows, count), np.int32)
    top_logprobs = np.empty((rows, count), np.float32)
    cpu.log_softmax_gather(
        lines.ctypes.data,
        rows,
        vocab_size,
        tokens.ctypes.data,
        logprobs.ctypes.data,
        ranks.ctypes.data,
        count,
        top_ids.ctypes.data if count else 0,
        top_logprobs.ctypes.data if count else 0,
    )
    columns = (tokens, logprobs, ranks, top_ids, top_logprobs)
    return [TokenLogprobs(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
