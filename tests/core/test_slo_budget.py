"""The token budget (scheduling.md, 6) by itself, against a naive twin, and S1, S3 and S5 of it."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi._core import parts
from airi._core.parts import SloBudget, StepTimeModel

from .naive_slo import (
    Decodes,
    NaiveBudget,
    Prefill,
    decode_work,
    largest_context,
    largest_prefill,
    next_due,
    with_prefills,
)
from .test_step_time import draw, true_time

FAR = 2**53


def trained(seed: int = 0, scale: float = 1.0, noise: float = 0.0) -> StepTimeModel:
    model, rng = StepTimeModel(), random.Random(seed)
    for _ in range(400):
        work = draw(rng)
        model.observe(work, scale * true_time(work) * math.exp(noise * rng.gauss(0, 1)))
    return model


MODELS = [trained(), trained(1, 0.01), trained(2, 100.0, 0.1), StepTimeModel()]

dues = st.one_of(st.none(), st.integers(-50_000, 300_000), st.sampled_from([-FAR, FAR, 3 * FAR]))
loads = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200_000), dues), max_size=4)
prefills = st.tuples(st.integers(0, 40_000), st.integers(1, 40_000), st.integers(0, 3), dues)


@settings(max_examples=60, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    tile=st.sampled_from([1, 7, 16, 64]),
    max_tokens=st.integers(1, 4096),
    steps=st.lists(
        st.tuples(
            loads, st.lists(prefills, max_size=3), st.one_of(st.none(), prefills), st.integers(0, 1200)
        ),
        max_size=40,
    ),
)
def test_it_decides_as_the_naive_budget_does(
    model: StepTimeModel,
    tile: int,
    max_tokens: int,
    steps: list[tuple[list[Decodes], list[Prefill], Prefill | None, int]],
) -> None:
    budget, naive = SloBudget(tile, max_tokens), NaiveBudget(tile, max_tokens)
    for bands, running, waiting, tokens in steps:
        assert budget.decide(model, 1000, bands, running, waiting) == naive.decide(
            model, 1000, bands, running, waiting
        )
        for i in range(tokens):
            budget.note(i % 60 == 0)
            naive.note(i % 60 == 0)
        assert budget.gain == naive.gain


@settings(max_examples=100, deadline=None)
@given(
    model=st.sampled_from(MODELS[:3]),
    work=st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 10**6), st.just(0.0)),
    running=st.lists(prefills, max_size=4),
    micros=st.one_of(st.floats(-1e5, 1e6), st.just(math.inf)),
    tile=st.integers(1, 40),
    most=st.integers(-3, 5000),
)
def test_the_largest_prefill_is_found_among_all(
    model: StepTimeModel,
    work: tuple[int, int, int, float],
    running: list[Prefill],
    micros: float,
    tile: int,
    most: int,
) -> None:
    found = parts.largest_prefill(model, work, running, micros, tile, most)
    assert found == largest_prefill(model, work, running, micros, tile, most)


@given(model=st.sampled_from(MODELS[:3]), micros=st.floats(0, 1e5), most=st.integers(1, 3000))
@settings(max_examples=50, deadline=None)
def test_the_largest_context_is_found_among_all(model: StepTimeModel, micros: float, most: int) -> None:
    assert parts.largest_context(model, micros, most) == largest_context(model, micros, most)


@given(
    due=st.integers(-FAR, 3 * FAR),
    emitted=st.integers(-FAR, FAR),
    itl=st.integers(0, FAR),
    credit=st.floats(0, 1),
)
def test_a_stream_saves_no_more_than_it_may(due: int, emitted: int, itl: int, credit: float) -> None:
    most = int(itl * credit)
    found = parts.next_token_due(due, emitted, itl, most)
    assert found == next_due(due, emitted, itl, most)
    assert emitted + itl <= found <= emitted + itl + most
    with pytest.raises(ValueError, match="most_saved"):
        parts.next_token_due(due, emitted, itl, -1)


def test_s1_the_budget_grows_with_the_slack_and_its_step_keeps_to_it() -> None:
    model, rng = MODELS[0], random.Random(7)
    for _ in range(100):
        count = rng.randint(1, 128)
        context = count * rng.randint(1, 3000)
        running: list[Prefill] = [(rng.randint(0, 30_000), rng.randint(1, 30_000), 0, None)]
        before = 0
        for due in range(0, 400_000, 20_000):
            budget = SloBudget(16, 8192)
            tokens, micros, resting = budget.decide(model, 0, [(count, context, due)], running, None)
            assert resting is None
            assert tokens >= before
            before = tokens
            work = decode_work([(count, context, due)])
            if due - 2 * model.sigma >= model.estimate(work):
                assert model.estimate(with_prefills(work, running, tokens)) <= due
                assert micros <= due


def test_s5_where_no_decode_has_a_deadline_a_step_is_full() -> None:
    bands: list[Decodes] = [(30, 90_000, None), (2, 100, None)]
    for model in MODELS:
        assert SloBudget(16, 1000).decide(model, 0, bands, [(0, 9000, 0, 1)], None) == (968, math.inf, None)
        assert SloBudget(16, 1000).decide(model, 0, [], [], (0, 10, 1, None))[0] == 1000


def test_a_model_that_knows_nothing_bounds_nothing() -> None:
    for due in (-FAR, 0, FAR):
        grant = SloBudget(16, 512).decide(StepTimeModel(), 0, [(12, 9000, due)], [(0, 9000, 0, 0)], None)
        assert grant == (500, math.inf, None)


@pytest.mark.parametrize("due", [-FAR, 0, 50_000])
def test_s3_no_prompt_waits_longer_than_the_patience_of_the_budget(due: int) -> None:
    """Decodes that are always late leave nothing to a prompt of no promise; it gets its least chunk all the same."""
    model = MODELS[0]
    budget = SloBudget(16, 2048)
    grants = [
        budget.decide(model, due, [(200, 400_000, due)], [(0, 30_000, 0, None)], None)[0] for _ in range(100)
    ]
    assert budget.least_chunk == 64
    dry = [i for i, tokens in enumerate(grants) if tokens >= 64]
    assert dry[0] <= 16
    assert max(b - a for a, b in itertools.pairwise(dry)) <= 17


def test_s3_a_prompt_whose_first_token_is_at_stake_is_not_kept_waiting() -> None:
    """Whatever the steps take, it gets tokens before it is too late."""
    model, rng = MODELS[0], random.Random(3)
    for _ in range(200):
        budget, now = SloBudget(16, 2048), 0
        remaining = rng.randint(16, 4000)
        alone = model.estimate(with_prefills((0, 0, 0, 0.0), [(0, remaining, 0, None)], remaining))
        due = int(alone * rng.uniform(1.01, 6))
        count = rng.randint(1, 200)
        bands: list[Decodes] = [(count, count * 2000, -FAR)]
        while True:
            prefill = (0, remaining, 0, due)
            assert SloBudget.is_feasible(model, now, prefill), "it was let down"
            tokens, _, _ = budget.decide(model, now, bands, [], prefill)
            if tokens:
                break
            now += int(model.estimate(decode_work(bands)))


def test_decodes_of_the_largest_band_sit_out_where_that_saves_the_others() -> None:
    model = MODELS[0]
    urgent, batch = (4, 4000, 60_000), (250, 700_000, None)
    assert model.estimate(decode_work([urgent, batch])) > 2 * model.estimate(decode_work([urgent]))
    late = int(model.estimate(decode_work([urgent, batch])) * 0.9)
    budget = SloBudget(16, 2048)
    bands: list[Decodes] = [(4, 4000, late), batch]
    prompt = (0, 500, 0, int(1.5 * model.estimate((500, 1, 0, 125_000.0))))
    rests = [budget.decide(model, 0, bands, [], prompt) for _ in range(4)]
    assert [r[2] for r in rests] == [1, None, 1, None], "never twice in a row"
    assert rests[0][0] >= budget.least_chunk
    # Not for a prompt that is less urgent than they are.
    lower = (0, 500, 2, prompt[3])
    assert SloBudget(16, 2048).decide(model, 0, bands, [], lower)[2] is None
    # Nor where nothing else decodes.
    assert SloBudget(16, 2048).decide(model, 0, [(0, 0, None), (250, 700_000, late)], [], prompt)[2] is None


def test_the_gain_falls_by_a_tenth_after_late_windows_and_recovers() -> None:
    budget = SloBudget(16, 8192)
    for _ in range(3):
        for i in range(1024):
            budget.note(i < 11)
    assert budget.gain == pytest.approx(0.729)
    bands: list[Decodes] = [(10, 1000, 200_000)]
    cut = budget.decide(MODELS[0], 0, bands, [(0, 30_000, 0, None)], None)[0]
    full = SloBudget(16, 8192).decide(MODELS[0], 0, bands, [(0, 30_000, 0, None)], None)[0]
    assert cut == int(full * budget.gain / 16) * 16
    for i in range(1024 * 40):
        budget.note(i % 1024 < 10)
    assert budget.gain == 1
    for _ in range(1024 * 60):
        budget.note(True)  # noqa: FBT003
    assert budget.gain == 0.1
    assert budget.decide(MODELS[0], 0, bands, [(0, 30_000, 0, None)], None)[0] > 0
