"""Gates: what is beyond the bound fails, what is within passes, and what cannot be told holds."""

from __future__ import annotations

import math
import random

import pytest

from airi.lifecycle.gates import AUTO, Bound, Change, Gate, Metric, Outcome, judge, judge_all, widest
from airi.lifecycle.observed import Histogram, Paired, Seen, merged


def seen(
    rng: random.Random, answers: int, *, delta: float = 0.0, ttft: float = 100.0, **rates: float
) -> Seen:
    made, rows = Seen(), random.Random(answers)
    for _ in range(answers):
        tokens = rng.randint(5, 200)
        made.overlap.add(sum(rows.random() < rates.get("overlap", 0.9) for _ in range(10)), 10)
        made.nll_delta.add(sum(rng.gauss(delta, 0.5) for _ in range(tokens)), tokens)
        made.ttft_ms.add(rng.lognormvariate(math.log(ttft), 0.5))
        made.requests += 1
        made.finished += 1
        made.errors += rng.random() < rates.get("errors", 0.0)
        made.cut += rng.random() < rates.get("cut", 0.2)
        made.json_asked += 1
        made.json_valid += rng.random() < rates.get("json", 1.0)
        made.schema_asked += 1
        made.schema_valid += rng.random() < rates.get("schema", 1.0)
    return made


CASES = [
    (Gate(metric=Metric.NLL_DELTA, bound=Bound.MAX, value=0.1), {"delta": 0.0}, {"delta": 0.3}),
    (Gate(metric=Metric.TTFT, bound=Bound.REGRESSION, value=0.1), {"ttft": 100.0}, {"ttft": 200.0}),
    (Gate(metric=Metric.ERRORS, bound=Bound.MAX, value=0.02), {"errors": 0.0}, {"errors": 0.2}),
    (Gate(metric=Metric.ERRORS, bound=Bound.REGRESSION_POINTS, value=0.02), {"errors": 0.0}, {"errors": 0.2}),
    (Gate(metric=Metric.LENGTH, bound=Bound.REGRESSION_POINTS, value=0.05), {"cut": 0.2}, {"cut": 0.5}),
    (Gate(metric=Metric.JSON, bound=Bound.MIN, value=0.95), {"json": 1.0}, {"json": 0.7}),
    (Gate(metric=Metric.SCHEMA, bound=Bound.MIN, value=0.95), {"schema": 1.0}, {"schema": 0.7}),
    (Gate(metric=Metric.JSON, bound=Bound.REGRESSION_POINTS, value=0.05), {"json": 1.0}, {"json": 0.7}),
    (Gate(metric=Metric.OVERLAP, bound=Bound.MIN, value=0.8), {"overlap": 0.9}, {"overlap": 0.6}),
]


@pytest.mark.parametrize(("gate", "good", "bad"), CASES)
def test_good_passes_bad_fails_little_holds(
    gate: Gate, good: dict[str, float], bad: dict[str, float]
) -> None:
    rng = random.Random(f"{gate}")
    stable = seen(rng, 3000)
    assert judge(gate, stable, seen(rng, 3000, **good)).outcome is Outcome.PASS
    assert judge(gate, stable, seen(rng, 3000, **bad)).outcome is Outcome.FAIL
    assert judge(gate, stable, seen(rng, 20, **good)).outcome is Outcome.HOLD
    assert judge(gate, Seen(), Seen()).outcome is Outcome.HOLD


@pytest.mark.parametrize(("gate", "good", "bad"), CASES)
def test_looking_again_and_again_alarms_nobody_about_the_same(
    gate: Gate, good: dict[str, float], bad: dict[str, float]
) -> None:
    rng = random.Random(f"again {gate}")
    for _ in range(10):
        stable, candidate = Seen(), Seen()
        for _ in range(40):
            stable.merge(seen(rng, 20))
            candidate.merge(seen(rng, 20, **good))
            assert judge(gate, stable, candidate).outcome is not Outcome.FAIL


@pytest.mark.parametrize("metric", [Metric.NLL_DELTA, Metric.AGREEMENT])
def test_an_auto_bound_is_that_of_what_has_changed(metric: Metric) -> None:
    bound = Bound.MAX if metric is Metric.NLL_DELTA else Bound.MIN
    gate = Gate(metric=metric, bound=bound, value=0.0, is_auto=True)
    for change in (Change.SAME_WEIGHTS, Change.FINETUNE):
        limit = AUTO[change][metric]
        for off, outcome in ((-1e-4, Outcome.PASS), (1e-4, Outcome.FAIL)):
            candidate = Seen()
            for _ in range(200):
                figure = limit + (off if bound is Bound.MAX else -off)
                candidate.nll_delta.add(100 * figure, 100)
                candidate.agreement.add(100 * figure, 100)
            said = judge(gate, Seen(), candidate, change)
            assert said.outcome is outcome
            assert f"{limit:g}, auto for {change}, 200 samples" in said.why
    for unknown in (None, Change.NEW_BASE):
        assert judge(gate, Seen(), candidate, unknown).outcome is Outcome.HOLD
    assert AUTO[Change.FINETUNE][Metric.NLL_DELTA] > AUTO[Change.SAME_WEIGHTS][Metric.NLL_DELTA]
    assert AUTO[Change.FINETUNE][Metric.AGREEMENT] < AUTO[Change.SAME_WEIGHTS][Metric.AGREEMENT]


def test_the_change_of_a_release_is_that_of_its_member_that_changed_most() -> None:
    assert widest([]) is Change.SAME_WEIGHTS
    assert widest([Change.FINETUNE, Change.SAME_WEIGHTS]) is Change.FINETUNE
    assert widest([Change.FINETUNE, Change.NEW_BASE, Change.SAME_WEIGHTS]) is Change.NEW_BASE


def test_a_mean_of_few_answers_fails_nobody() -> None:
    gate = Gate(metric=Metric.NLL_DELTA, bound=Bound.MAX, value=0.1)
    candidate = Seen()
    for answers in range(1, 21):
        candidate.nll_delta.add(20.0, 10)  # all alike, so that their standard error is nothing
        expected = Outcome.HOLD if answers < 20 else Outcome.FAIL
        assert judge(gate, Seen(), candidate).outcome is expected


def test_of_several_gates_the_worst_speaks() -> None:
    gates = {
        "both": (CASES[0][0], CASES[2][0]),
        "tokens": (CASES[0][0],),
        "none": (),
    }
    rng = random.Random(3)
    found = judge_all(gates, Seen(), seen(rng, 2000, errors=0.3))
    assert {name: finding.outcome for name, finding in found.items()} == {
        "both": Outcome.FAIL,
        "tokens": Outcome.PASS,
        "none": Outcome.PASS,
    }
    assert found["both"].why.startswith("error_rate 0.")


def test_a_histogram_gives_quantiles_within_its_buckets() -> None:
    rng = random.Random(5)
    values = sorted(rng.lognormvariate(3, 1) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for q in (0.01, 0.5, 0.95, 0.99):
        true = values[math.ceil(q * len(values)) - 1]
        assert abs(histogram.quantile(q) / true - 1) < 1 / 45
    assert Histogram().quantile(0.5) == 0


def test_the_mean_over_tokens_knows_that_those_of_an_answer_hang_together() -> None:
    rng = random.Random(7)

    def sample() -> Paired:
        paired = Paired()
        for _ in range(100):
            tokens, shift = rng.randint(1, 50), rng.gauss(0.5, 1)
            paired.add(sum(shift + rng.gauss(0, 0.1) for _ in range(tokens)), tokens)
        return paired

    samples = [sample() for _ in range(400)]
    center = sum(s.mean for s in samples) / len(samples)
    spread = math.sqrt(sum((s.mean - center) ** 2 for s in samples) / (len(samples) - 1))
    told = sum(s.standard_error for s in samples) / len(samples)
    assert 0.85 < told / spread < 1.15
    assert Paired().standard_error == math.inf


def test_counts_of_several_gateways_are_those_of_one() -> None:
    rng = random.Random(11)
    parts = [seen(rng, 50) for _ in range(3)]
    whole = merged(parts)
    assert whole.requests == 150
    assert whole.ttft_ms.count == 150
    assert whole.nll_delta.tokens == sum(part.nll_delta.tokens for part in parts)
    assert whole.nll_delta.mean == pytest.approx(
        sum(p.nll_delta.total for p in parts) / sum(p.nll_delta.tokens for p in parts)
    )


def test_a_gate_without_samples_says_how_many_calls_are_none() -> None:
    gate = Gate(metric=Metric.ERRORS, bound=Bound.MAX, value=0.01, min_samples=10)
    stable, candidate = Seen(requests=40, chosen=2), Seen(chosen=3)
    held = judge(gate, stable, candidate)
    assert held.outcome is Outcome.HOLD
    assert "; 5 calls brought their release along, and are no samples; 10 are needed" in held.why
    assert "brought" not in judge(gate, stable, Seen(requests=10, chosen=3)).why
