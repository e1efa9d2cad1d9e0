"""The token budget under latency targets, once more: every choice a scan over what it chooses from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from airi._core.parts import StepTimeModel

Decodes = tuple[int, int, int | None]
"""(decodes, sum of their contexts, earliest due) of one band."""
Prefill = tuple[int, int, int, int | None]
"""(context, remaining, band, due)."""
Work = tuple[int, int, int, float]

PATIENCE = 16
WINDOW = 1024


def next_due(due: int, emitted: int, itl: int) -> int:
    saved = due - emitted
    return emitted + itl + max(0, min(saved, itl))


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
        slack = min((band[2] - start - 2 * model.sigma for band in bands if band[2] is not None), default=math.inf)
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
