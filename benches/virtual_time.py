"""A scheduler under virtual time: a trace goes in, the time of every token comes out; no model runs.

The loop knows a scheduler by three methods (`Scheduler`), and how long a step takes by one pure function of its
work (`StepTime`); AIRI's runtime and vLLM's Scheduler stand behind the same loop with the same function. The time that
a scheduler itself takes is not in it. This file must import nothing but numpy: it also runs in the peer's environment.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STOP_TOKEN = 2
"""Sampled where a request's output ends; every other sampled token is `PLAIN_TOKEN`."""
PLAIN_TOKEN = 7
_FIRST_PROMPT_TOKEN = 100
_PROMPT_TOKENS = 30000


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes: tokens, sequences, and the keys that its attention reads."""

    tokens: int
    seqs: int
    decode_context: int
    """Sum of the lengths of sequences that bring one token."""
    prefill_pairs: float
    """Sum over longer chunks of tokens * (context before it + tokens / 2)."""


def work_of(queries: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Work:
    """The work of a batch: per sequence its tokens in this step and its length after it."""
    single = queries == 1
    chunks = queries[~single].astype(np.float64)
    pairs = chunks * (lengths[~single] - chunks / 2)
    return Work(int(queries.sum()), len(queries), int(lengths[single].sum()), float(pairs.sum()))


@dataclass(frozen=True, slots=True)
class Piece:
    """Microseconds: a constant, and so much for each unit of work."""

    step_us: float
    token_us: float
    seq_us: float
    context_us: float
    """Per token that a decode attends to."""
    pair_us: float

    def micros(self, work: Work) -> float:
        return (
            self.step_us
            + self.token_us * work.tokens
            + self.seq_us * work.seqs
            + self.context_us * work.decode_context
            + self.pair_us * work.prefill_pairs
        )


@dataclass(frozen=True, slots=True)
class StepTime:
    """The longer of two linear pieces: a step is bound by memory or by arithmetic."""

    memory: Piece
    arithmetic: Piece

    def micros(self, work: Work) -> int:
        """Whole microseconds, at least 1."""
        return max(1, round(max(self.memory.micros(work), self.arithmetic.micros(work))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What both sides are given: how long steps take, memory, and limits."""

    step_time: StepTime
    kv_blocks: int
    block_size: int = 16
    max_num_seqs: int
    max_batch_tokens: int
    max_model_len: int
    steps_ahead: int = 0
    """Steps that are planned while an earlier one runs."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Setup:
        pieces = {name: Piece(**piece) for name, piece in fields["step_time"].items()}
        return cls(**{**fields, "step_time": StepTime(**pieces)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in order of arrival. A prompt is a row of segments; segments with equal keys have equal tokens."""

    arrival_us: Ints
    tenant: Ints
    output: Ints
    """Tokens until the stop token, which counts: at least 1."""
    max_tokens: Ints
    """What the client allowed: at least `output`."""
    segment_start: Ints
    """[requests + 1]: the segments of request i are [segment_start[i], segment_start[i + 1])."""
    segment_key: Ints
    segment_len: Ints

    def __len__(self) -> int:
        return len(self.arrival_us)

    @property
    def prompt_len(self) -> Ints:
        ends = np.concatenate([[0], np.cumsum(self.segment_len)])
        return np.diff(ends[self.segment_start])

    def prompt(self, index: int) -> npt.NDArray[np.int32]:
        """The token ids of a prompt: each a hash of its segment's key and its place in the segment."""
        segments = slice(self.segment_start[index], self.segment_start[index + 1])
        lengths = self.segment_len[segments]
        places = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        keys = np.repeat(self.segment_key[segments], lengths)
        with np.errstate(over="ignore"):
            mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + places.astype(np.uint64)
            for shift in (30, 27):
                mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(0xBF58476D1CE4E5B9)
        return (_FIRST_PROMPT_TOKEN + (mixed >> np.uint64(33)) % np.uint64(_PROMPT_TOKENS)).astype(np.int32)

    def at_speed(self, factor: float) -> Trace:
        """The same requests, `factor` times as fast after another."""
        return replace(self, arrival_us=np.round(self.arrival_us / factor).astype(np.int64))

    def first(self, count: int) -> Trace:
        """The requests that arrive first."""
        starts = self.segment_start[: count + 1]
        ends = {"segment_start": count + 1, "segment_key": starts[-1], "segment_len": starts[-1]}
        return Trace(**{name: getattr(self, name)[: ends.get(name, count)] for name in self.__slots__})

    def until(self, arrival_us: int) -> Trace:
        """The requests that arrive before a moment."""
        return self.first(int(np.searchsorted(self.arrival_us, arrival_us)))

    def save(self, path: Path) -> None:
        np.savez(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> Trace:
        with np.load(path) as columns:
            return cls(**columns)


def make_trace(
    arrival_us: npt.ArrayLike,
    prompt_len: npt.ArrayLike,
    output: npt.ArrayLike,
    *,
    tenant: npt.ArrayLike | None = None,
    max_tokens: npt.ArrayLike | None = None,
    first_key: int = 1,
) -> Trace:
    """A trace in which no two prompts share anything; sorted by arrival."""
    arrivals = np.asarray(arrival_us, np.int64)
    order = np.argsort(arrivals, kind="stable")
    outputs = np.asarray(output, np.int64)[order]
    count = len(arrivals)
    tenants = np.zeros(count, np.int64) if tenant is None else np.asarray(tenant, np.int64)[order]
    allowed = outputs if max_tokens is None else np.asarray(max_tokens, np.int64)[order]
    return Trace(
        arrival_us=arrivals[order],
        tenant=tenants,
        output=outputs,
        max_tokens=allowed,
        segment_start=np.arange(count + 1),
        segment_key=first_key + order,
        segment_len=np.asarray(prompt_len, np.int64)[order],
    )


class Scheduler(Protocol):
    """What the loop asks of a scheduler; requests are known by their index in the trace."""

    @property
    def cached(self) -> Ints:
        """[requests] prompt tokens that were hits when the request first ran; whole once all have ended."""

    @property
    def preemptions(self) -> int: ...

    def submit(self, index: int) -> None:
        """Takes a request in. Raises ValueError for one that can never run."""

    def plan(self, now_us: int) -> Work | None:
        """Plans a step, or None where nothing can run."""

    def commit(self, device_us: int) -> Ints:
        """Ends the oldest planned step; the requests that got a token, each at most once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a trace; tokens of request i are [token_start[i], token_start[i + 1])."""

    trace: Trace
    token_us: Ints
    token_start: Ints
    cached: Ints
    preemptions: int
    step_start_us: Ints
    step_end_us: Ints
    step_tokens: Ints
    step_seqs: Ints
    _FIELDS = (
        "token_us",
        "token_start",
        "cached",
        "step_start_us",
        "step_end_us",
        "step_tokens",
        "step_seqs",
    )

    @property
    def ttft_us(self) -> Ints:
        """[requests] from arrival to the first token."""
        return self.token_us[self.token_start[:-1]] - self.trace.arrival_us

    @property
    def finish_us(self) -> Ints:
        return self.token_us[self.token_start[1:] - 1]

    def gaps_us(self, which: npt.NDArray[np.bool_] | None = None) -> Ints:
        """Between the tokens of each request, all in one row; only of the requests in the mask."""
        gaps, owners = self._gaps()
        return gaps if which is None else gaps[which[owners]]

    def gap_quantile_us(self, q: float) -> Ints:
        """[requests] the gap that a share q of the request's gaps does not exceed; 0 without gaps."""
        gaps, owners = self._gaps()
        ordered = gaps[np.lexsort((gaps, owners))]
        counts = np.bincount(owners, minlength=len(self.trace))
        rank = np.cumsum(counts) - counts + np.maximum(np.ceil(q * counts).astype(np.int64), 1) - 1
        found = np.zeros(len(self.trace), np.int64)
        found[counts > 0] = ordered[rank[counts > 0]]
        return found

    def mean_gap_us(self) -> Floats:
        """[requests] time per output token after the first; 0 without a second."""
        last, first = self.finish_us, self.token_us[self.token_start[:-1]]
        return np.asarray((last - first) / np.maximum(np.diff(self.token_start) - 1, 1), np.float64)

    def _gaps(self) -> tuple[Ints, Ints]:
        """The gaps in order of requests, and whose they are."""
        owners = np.repeat(np.arange(len(self.trace)), np.diff(self.token_start))
        keep = owners[1:] == owners[:-1]
        return np.diff(self.token_us)[keep], owners[1:][keep]

    def save(self, path: Path) -> None:
        columns = {name: getattr(self, name) for name in self._FIELDS}
        np.savez(path, preemptions=self.preemptions, **columns)

    @classmethod
    def load(cls, path: Path, trace: Trace) -> Outcome:
        with np.load(path) as columns:
            fields = {name: columns[name] for name in cls._FIELDS}
            return cls(trace=trace, preemptions=int(columns["preemptions"]), **fields)


@dataclass(slots=True)
class _Log:
    """Steps as they end."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    emitted: list[Ints] = field(default_factory=list)

    def add(self, start: int, end: int, work: Work, emitted: Ints) -> None:
        self.starts.append(start)
        self.ends.append(end)
        self.tokens.append(work.tokens)
        self.seqs.append(work.seqs)
        self.emitted.append(emitted)

    def outcome(self, trace: Trace, scheduler: Scheduler) -> Outcome:
        owners = np.concatenate([np.zeros(0, np.int64), *self.emitted])
        times = np.repeat(np.asarray(self.ends, np.int64), [len(e) for e in self.emitted])
        counts = np.bincount(owners, minlength=len(trace))
        wrong = np.flatnonzero(counts != trace.output)
        if len(wrong):
            i = int(wrong[0])
            raise RuntimeError(f"request {i} got {counts[i]} tokens of {trace.output[i]}")
        return Outcome(
            trace=trace,
            token_us=times[np.argsort(owners, kind="stable")],
            token_start=np.concatenate([[0], np.cumsum(counts)]),
            cached=scheduler.cached,
            preemptions=scheduler.preemptions,
            step_start_us=np.asarray(self.starts, np.int64),
            step_end_us=np.asarray(self.ends, np.int64),
            step_tokens=np.asarray(self.tokens, np.int64),
            step_seqs=np.asarray(self.seqs, np.int64),
        )


def drive(scheduler: Scheduler, trace: Trace, setup: Setup) -> Outcome:
    """Runs a trace to its end. A step sees what had arrived when it was planned, which is when the one
    `steps_ahead` before it began. Raises RuntimeError where the scheduler stalls or loses a token."""
    log = _Log()
    in_flight: deque[tuple[int, int, Work]] = deque()
    arrivals = trace.arrival_us.tolist()
    now, device_free, arrived = 0, 0, 0
    left = len(trace)
    emitted_of = np.zeros(len(trace), np.int64)
    while left > 0:
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            scheduler.submit(arrived)
            arrived += 1
        while len(in_flight) <= setup.steps_ahead and (work := scheduler.plan(now)) is not None:
            start = max(now, device_free)
            device_free = start + setup.step_time.micros(work)
            in_flight.append((start, device_free, work))
        if in_flight:
            start, now, work = in_flight.popleft()
            emitted = scheduler.commit(now - start)
            emitted_of[emitted] += 1
            left -= int((emitted_of[emitted] == trace.output[emitted]).sum())
            log.add(start, now, work, emitted)
        elif (due := getattr(scheduler, "waits_until_us", None)) is not None:
            now = max(now, min(due, arrivals[arrived]) if arrived < len(arrivals) else due)
        elif arrived < len(arrivals):
            now = arrivals[arrived]
        else:
            raise RuntimeError(f"the scheduler stalls at {now} us with {left} requests left")
    return log.outcome(trace, scheduler)
