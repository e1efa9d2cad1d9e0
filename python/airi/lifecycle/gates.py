"""Gates of a rollout: what the candidate's figures must be, and when they can be believed.

A gate fails only where its figures are beyond the bound by more than chance explains, at any time; it passes where they
are within it and there are enough of them; until then it holds. Chance: `SURE` standard errors, as gates look again and
again and a rollout has many of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from airi.lifecycle.observed import Histogram, Paired, Seen

__all__ = [
    "AUTO",
    "SURE",
    "Bound",
    "Change",
    "Finding",
    "Gate",
    "Metric",
    "Outcome",
    "judge",
    "judge_all",
    "widest",
]

SURE = 4.0
"""Standard errors beyond a bound at which a gate has failed: 1 in 30,000 looks at what lies on the bound itself."""
_FEWEST_ANSWERS = 20
"""With fewer of them nobody knows the standard error of a mean: two alike by chance would make it nothing."""


class Metric(StrEnum):
    """What a gate looks at."""

    TTFT = "ttft_ms"
    """Time to the first token, at a quantile."""
    ITL = "itl_ms"
    """Time between tokens, at a quantile."""
    ERRORS = "error_rate"
    NLL_DELTA = "token.nll_delta"
    """Mean, per token, of how much less likely the candidate finds what stable has served, in nats: an estimate of
    KL(stable || candidate) where stable's samples were not truncated."""
    AGREEMENT = "token.top1_agreement"
    """Share of these tokens where the most likely one is the same."""
    DIVERGENCE = "token.first_divergence"
    """Tokens up to the first disagreement, at a quantile."""
    LENGTH = "output.finish_length_rate"
    """Share of answers that ended by their length."""
    REPETITION = "output.repetition_rate"
    JSON = "output.json_valid_rate"
    """Share of the answers that were to be JSON that are."""
    SCHEMA = "output.schema_valid_rate"
    """Share of the answers with a declared schema, calls of tools among them, that meet it."""
    OVERLAP = "retrieval.overlap"
    """Share of the rows that searches of collections find with stable's vectors which the candidate's find, too."""


_PAIRED: dict[Metric, Callable[[Seen], Paired]] = {
    Metric.NLL_DELTA: lambda seen: seen.nll_delta,
    Metric.AGREEMENT: lambda seen: seen.agreement,
    Metric.OVERLAP: lambda seen: seen.overlap,
}
_SCORED = (*_PAIRED, Metric.DIVERGENCE)
_MORE_IS_BETTER = (Metric.AGREEMENT, Metric.DIVERGENCE, Metric.OVERLAP, Metric.JSON, Metric.SCHEMA)


class Bound(StrEnum):
    """What a gate's number bounds."""

    MAX = "max"
    MIN = "min"
    REGRESSION = "max_regression"
    """How much worse than stable's figure: relative to it."""
    REGRESSION_POINTS = "max_regression_points"
    """The same as a difference, of shares."""


class Change(StrEnum):
    """How far a candidate is from stable, by what both are made of; from the least to the most."""

    SAME_WEIGHTS = "same-weights"
    """The same tensors: a template, a setting, or nothing at all has changed."""
    FINETUNE = "finetune"
    """Other weights of the same shapes, with the same tokenizer."""
    NEW_BASE = "new-base"
    """Another network, or another tokenizer."""


def widest(changes: Iterable[Change]) -> Change:
    """Of several members of a release; without any, nothing has changed."""
    order = list(Change)
    return max(changes, key=order.index, default=Change.SAME_WEIGHTS)


class Gate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One figure and its bound."""

    metric: Metric
    bound: Bound
    value: float
    is_auto: bool = False
    """Whether `AUTO` has the bound instead, by what has changed."""
    quantile: float = 0.95
    """Of times and of the first divergence."""
    min_samples: int = 100
    """Requests, or scored answers, below which it does not pass."""

    @property
    def is_scored(self) -> bool:
        """Whether it looks at what the candidate says of stable's answers, or finds for its queries."""
        return self.metric in _SCORED

    @property
    def is_relative_time(self) -> bool:
        """Whether it compares times of both releases: they are those of one moment, or say nothing."""
        return self.metric in (Metric.TTFT, Metric.ITL) and self.bound is Bound.REGRESSION


AUTO: dict[Change, dict[Metric, float]] = {
    Change.SAME_WEIGHTS: {Metric.NLL_DELTA: 0.002, Metric.AGREEMENT: 0.99},
    Change.FINETUNE: {Metric.NLL_DELTA: 0.01, Metric.AGREEMENT: 0.98},
}
"""What `auto` stands for: `max` of the one and `min` of the other; from `python -m benches.bench_faults --auto`, of a
small model.

The same weights: what rounding them to 8 bits does stays below it, which is more than numerics do. Finetune: between a
little more training on the same kind of texts, and noise 8 times that of 8 bits. A candidate that was trained to answer
otherwise is beyond it: whoever means that says a number. Of another network or tokenizer nothing can be said.
"""


class Outcome(StrEnum):
    """What a gate says."""

    PASS = "pass"
    FAIL = "fail"
    HOLD = "hold"
    """Too little is known."""


class Finding(NamedTuple):
    """What a gate says, and why, in a line for people."""

    outcome: Outcome
    why: str


class _Range(NamedTuple):
    """A figure with the least and the most that it may be in truth."""

    least: float
    value: float
    most: float
    samples: int


def judge_all(
    gates: Mapping[str, Iterable[Gate]], stable: Seen, candidate: Seen, change: Change | None = None
) -> dict[str, Finding]:
    """By name, what each list of gates says together: the first that fails, else the first that holds.

    `change`: from stable to the candidate; None while it is not known.
    """
    order = (Outcome.FAIL, Outcome.HOLD, Outcome.PASS)
    found = {}
    for name, members in gates.items():
        findings = sorted(
            (judge(gate, stable, candidate, change) for gate in members), key=lambda f: order.index(f.outcome)
        )
        found[name] = findings[0] if findings else Finding(Outcome.PASS, "it asks for nothing")
    return found


def judge(gate: Gate, stable: Seen, candidate: Seen, change: Change | None = None) -> Finding:
    """What one gate says of what was seen of both releases; `change` as for `judge_all`."""
    if gate.is_auto:
        if change is None:
            return Finding(Outcome.HOLD, f"{gate.metric}: what the candidate has changed is not known yet")
        if change is Change.NEW_BASE:
            why = (
                "the candidate has another tokenizer or network; auto promises nothing of that, give a number"
            )
            return Finding(Outcome.HOLD, f"{gate.metric}: {why}")
        gate = msgspec.structs.replace(gate, value=AUTO[change][gate.metric])
    found = _figure(gate, candidate)
    value, samples = found.value, found.samples
    if gate.bound in (Bound.MAX, Bound.MIN):
        least, most = found.least, found.most
        compared = ""
    else:
        before = _figure(gate, stable)
        samples = min(samples, before.samples)
        worse, better = (before, found) if gate.metric in _MORE_IS_BETTER else (found, before)
        value, least, most = _regression(gate.bound, worse, better)
        compared = f", stable {before.value:.4g}"
    enough = samples >= gate.min_samples
    beyond = most < gate.value if gate.bound is Bound.MIN else least > gate.value
    within = value >= gate.value if gate.bound is Bound.MIN else value <= gate.value
    auto = f", auto for {change}" if gate.is_auto else ""
    shown = (
        f"{gate.metric} {found.value:.4g}{compared} ({gate.bound} {gate.value:g}{auto}, {samples} samples)"
    )
    if gate.is_scored and candidate.unscored:
        shown += f"; {candidate.unscored} answers could not be scored"
    if gate.metric is Metric.SCHEMA and candidate.unjudged:
        shown += f"; {candidate.unjudged} answers could not be judged"
    if samples and beyond:
        return Finding(Outcome.FAIL, shown)
    if not enough and stable.chosen + candidate.chosen:
        shown += f"; {stable.chosen + candidate.chosen} calls brought their release along, and are no samples"
    if not enough:
        return Finding(Outcome.HOLD, f"{shown}; {gate.min_samples} are needed")
    return Finding(Outcome.PASS if within else Outcome.HOLD, shown)


def _regression(bound: Bound, up: _Range, down: _Range) -> tuple[float, float, float]:
    """How far the one figure lies above the other, with the least and the most that it may be."""
    if bound is Bound.REGRESSION_POINTS:
        value = up.value - down.value
        less = math.hypot(up.value - up.least, down.most - down.value)
        more = math.hypot(up.most - up.value, down.value - down.least)
        return value, value - less, value + more
    return _ratio(up.value, down.value), _ratio(up.least, down.most), _ratio(up.most, down.least)


def _ratio(up: float, down: float) -> float:
    if math.isinf(up) and math.isinf(down):
        return 0.0
    if down <= 0:
        return 0.0 if up <= 0 else math.inf
    return up / down - 1


def _figure(gate: Gate, seen: Seen) -> _Range:
    metric = gate.metric
    if metric is Metric.TTFT:
        return _quantile(seen.ttft_ms, gate.quantile)
    if metric is Metric.ITL:
        return _quantile(seen.itl_ms, gate.quantile)
    if metric is Metric.DIVERGENCE:
        return _quantile(seen.first_divergence, gate.quantile)
    if metric in _PAIRED:
        paired = _PAIRED[metric](seen)
        width = SURE * paired.standard_error if paired.answers >= _FEWEST_ANSWERS else math.inf
        return _Range(paired.mean - width, paired.mean, paired.mean + width, paired.answers)
    hits, of = {
        Metric.ERRORS: (seen.errors, seen.requests),
        Metric.LENGTH: (seen.cut, seen.finished),
        Metric.REPETITION: (seen.repeating, seen.finished),
        Metric.JSON: (seen.json_valid, seen.json_asked),
        Metric.SCHEMA: (seen.schema_valid, seen.schema_asked),
    }[metric]
    return _share(hits, of)


def _share(hits: int, of: int) -> _Range:
    """A share with Wilson's interval, which is right for few and for none, too."""
    if not of:
        return _Range(0.0, 0.0, 1.0, 0)
    share, z2 = hits / of, SURE * SURE
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    width = SURE * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return _Range(middle - width, share, middle + width, of)


def _quantile(histogram: Histogram, q: float) -> _Range:
    """A quantile between the order statistics that it lies between in truth (the binomial, as a normal one)."""
    count = histogram.count
    width = SURE * math.sqrt(count * q * (1 - q))
    low, high = math.floor(count * q - width), math.ceil(count * q + width) + 1
    return _Range(
        histogram.at_rank(low) if low >= 1 else 0.0,
        histogram.quantile(q),
        histogram.at_rank(high) if high <= count else math.inf,
        count,
    )
