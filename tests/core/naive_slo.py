"""The token budget under latency targets, once more: every choice a scan over what it chooses from."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from airi._core.parts import StepTimeModel

from .naive_request import NaiveRequest, NaiveRow

Decodes = tuple[int, int, int | None]
"""(decodes, sum of their contexts, earliest due) of one band."""
Prefill = tuple[int, int, int, int | None]
"""(context, remaining, band, due)."""
Work = tuple[int, int, int, float]

SLO_COUNTERS = [
    *(f"{what}_{how}" for what in ("first_tokens", "next_tokens", "requests") for how in ("on_time", "late")),
    "best_effort",
    "rests",
]
"""Of ModelStats."""
PATIENCE = 16
WINDOW = 1024


def next_due(due: int, emitted: int, itl: int, most_saved: int) -> int:
    saved = due - emitted
    return emitted + itl + max(0, min(saved, most_saved))


def with_prefills(work: Work, prefills: list[Prefill], tokens: int) -> Work:
    """`prefills` get `tokens` one after the other; what they cannot take is a new prompt's."""
    all_tokens, seqs, context, pairs = work
    all_tokens += tokens
    for start, remaining, _, _ in prefills:
        if tokens == 0:
            break
        part = min(remaining, tokens)
        pairs += part * (start + part / 2)
        seqs += 1
        tokens -= part
    return all_tokens, seqs + (tokens > 0), context, pairs


def largest_prefill(
    model: StepTimeModel, work: Work, prefills: list[Prefill], micros: float, tile: int, most: int
) -> int:
    choices = {*range(0, max(most, 0), tile), max(most, 0)}
    within = [c for c in choices if model.estimate(with_prefills(work, prefills, c)) <= micros]
    return max(within, default=0)


def largest_context(model: StepTimeModel, micros: float, most: int) -> int | None:
    return max((c for c in range(most + 1) if model.estimate((1, 1, c, 0.0)) <= micros), default=None)


def decode_work(bands: list[Decodes]) -> Work:
    count = sum(band[0] for band in bands)
    return count, count, sum(band[1] for band in bands), 0.0


@dataclass
class NaiveBudget:
    """The twin of SloBudget."""

    tile: int
    max_tokens: int
    gain: float = 1.0
    tokens: int = 0
    late: int = 0
    starved: int = 0
    rested: bool = False

    @property
    def least(self) -> int:
        return max(self.max_tokens // 32 // self.tile, 1) * self.tile

    def note(self, late: bool) -> None:  # noqa: FBT001
        self.tokens += 1
        self.late += late
        if self.tokens == WINDOW:
            bad = self.late > WINDOW // 100
            self.gain = max(0.1, self.gain * 0.9) if bad else min(1.0, self.gain + 0.01)
            self.tokens = self.late = 0

    def alone(self, model: StepTimeModel, prefill: Prefill) -> float:
        return model.estimate(with_prefills((0, 0, 0, 0.0), [prefill], prefill[1]))

    def presses(self, model: StepTimeModel, start: int, step: float, prefill: Prefill) -> bool:
        due = prefill[3]
        if due is None:
            return False
        alone = self.alone(model, prefill)
        return alone <= due - start <= 2 * alone + step + 2 * model.sigma

    def within(
        self, model: StepTimeModel, start: int, bands: list[Decodes], prefills: list[Prefill]
    ) -> tuple[int, float]:
        work = decode_work(bands)
        slack = min(
            (0.98 * (band[2] - start) - 2 * model.sigma for band in bands if band[2] is not None),
            default=math.inf,
        )
        micros = max(slack, model.estimate(work))
        most = max(self.max_tokens - work[0], 0)
        tokens = largest_prefill(model, work, prefills, micros, self.tile, most)
        if 0 < tokens < most:
            tokens = max(int(tokens * self.gain / self.tile), 1) * self.tile
        return tokens, micros

    def decide(
        self,
        model: StepTimeModel,
        start: int,
        bands: list[Decodes],
        prefills: list[Prefill],
        waiting: Prefill | None,
    ) -> tuple[int, float, int | None]:
        work = decode_work(bands)
        most = max(self.max_tokens - work[0], 0)
        rested, self.rested = self.rested, False
        starved, self.starved = self.starved, 0
        if not model.is_trained or not work[0]:
            return most, math.inf, None
        tokens, micros = self.within(model, start, bands, prefills)
        wanting = prefills + ([waiting] if waiting else [])
        if tokens >= min(self.least, most) or not wanting:
            return tokens, micros, None
        pressing = [p[2] for p in wanting if self.presses(model, start, micros, p)]
        if not pressing and starved >= PATIENCE:
            pressing = [wanting[0][2]]
        if not pressing:
            self.starved = starved + 1
            return tokens, micros, None
        decoding = [b for b, band in enumerate(bands) if band[0]]
        for band in [] if rested else reversed(decoding[1:]):
            if band < pressing[0]:
                break
            tokens, limit = self.within(model, start, bands[:band], prefills)
            if tokens >= self.least:
                self.rested = True
                return tokens, limit, band
        tokens = min(self.least, most)
        return tokens, max(micros, model.estimate(with_prefills(work, prefills, tokens))), None


class NaivePolicy:
    """The twin of SloPolicy, for one model."""

    def __init__(
        self,
        targets: tuple[tuple[int | None, int | None], ...],
        *,
        credit: float,
        tile: int,
        max_tokens: int,
        bands: int,
        aging: int | None,
    ) -> None:
        self.targets = targets
        self.credit = credit
        self.active = any(t is not None for target in targets for t in target)
        self.model = StepTimeModel()
        self.budget = NaiveBudget(tile, max_tokens)
        self.bands = bands
        self.aging = aging
        self.counts: Counter[str] = Counter()
        self.start = 0

    def target(self, r: NaiveRequest) -> tuple[int | None, int | None]:
        return self.targets[r.first_band] if r.first_band < len(self.targets) else (None, None)

    def first_due(self, r: NaiveRequest) -> int | None:
        ttft = self.target(r)[0]
        return None if ttft is None or len(r.text) > r.prompt else r.arrival + ttft

    def load(self, r: NaiveRequest) -> Prefill:
        due = None if r.best_effort_until is not None else self.first_due(r)
        return r.computed, len(r.text) - r.computed, r.band, due

    def is_hopeless(self, r: NaiveRequest, cached: int) -> bool:
        due = self.first_due(r)
        if not self.active or r.best_effort_until is not None or not self.model.is_trained or due is None:
            return False
        alone = self.budget.alone(self.model, (cached, len(r.text) - cached, 0, due))
        return alone > due - self.start

    def stay(self, r: NaiveRequest) -> int:
        ttft = self.target(r)[0]
        assert ttft is not None
        return self.start + max(300 * ttft, self.aging or 0, 1)

    def keeps_up(self, r: NaiveRequest, context: int) -> bool:
        """Whether the target between tokens can be met at all with such a context."""
        itl = self.target(r)[1]
        return itl is not None and self.model.estimate((1, 1, context, 0.0)) <= itl

    def grant(
        self,
        decodes: list[NaiveRequest],
        prefills: list[NaiveRequest],
        waiting: NaiveRequest | None,
    ) -> None:
        bands: list[Decodes] = []
        for band in range(self.bands + 1):
            own = [r for r in decodes if r.band == band]
            dues = [r.token_due for r in own if self.keeps_up(r, r.computed + 1)]
            bands.append((len(own), sum(r.computed + 1 for r in own), min(dues, default=None)))
        self.tokens, self.micros, self.resting_from = self.budget.decide(
            self.model,
            self.start,
            bands,
            [self.load(r) for r in prefills],
            None if waiting is None else self.load(waiting),
        )
        if len(decodes) + self.tokens >= self.budget.max_tokens:
            self.tokens = self.budget.max_tokens

    def regrant(self, decodes: list[NaiveRequest], prefills: list[NaiveRequest]) -> None:
        new = [i for i, r in enumerate(prefills) if r.first]
        if not self.active or not new:
            return
        work = self.work([NaiveRow(request=r, count=1, first=False) for r in decodes if not self.rests(r)])
        loads = [self.load(r) for r in prefills]
        least = min((new[-1] + 1) * self.budget.tile, self.tokens)
        self.tokens = max(
            largest_prefill(self.model, work, loads, self.micros, self.budget.tile, self.tokens), least
        )

    def rests(self, r: NaiveRequest) -> bool:
        return self.active and self.resting_from is not None and r.band >= self.resting_from

    def work(self, rows: list[NaiveRow]) -> Work:
        tokens, context, pairs = 0, 0, 0.0
        for row in rows:
            tokens += row.count
            if row.request.state == "decode":
                context += row.request.computed + 1
            else:
                pairs += row.count * (row.request.computed + row.count / 2)
        return tokens, len(rows), context, pairs

    def room(self, rows: list[NaiveRow], budget: int) -> int:
        """The budget, or 0 where no further prompt may be started."""
        if not self.active:
            return budget
        more = with_prefills(self.work(rows), [], self.budget.tile)
        return budget if self.model.estimate(more) <= self.micros else 0

    def room_for(self, rows: list[NaiveRow], context: int, most: int) -> int:
        if not self.active or self.micros == math.inf:
            return most
        tile = self.budget.tile
        fits = largest_prefill(
            self.model, self.work(rows), [(context, most, 0, None)], self.micros, tile, most
        )
        return max(fits, min(tile, most))

    def note(self, r: NaiveRequest, emitted: int) -> None:
        """The request has got its newest token."""
        at = len(r.text) - 1
        ttft, itl = self.target(r)
        first = at == r.prompt
        due = (
            (None if ttft is None else r.arrival + ttft) if first else (None if itl is None else r.token_due)
        )
        if due is not None:
            late = emitted > due
            r.was_late |= late
            self.counts[("first" if first else "next") + "_tokens_" + ("late" if late else "on_time")] += 1
            if not first and self.keeps_up(r, at):
                self.budget.note(late)
        if itl is not None:
            saved = int(itl * self.credit)
            r.token_due = emitted + itl if first else next_due(r.token_due, emitted, itl, saved)

    def note_end(self, r: NaiveRequest) -> None:
        if self.target(r) != (None, None):
            self.counts["requests_late" if r.was_late else "requests_on_time"] += 1
