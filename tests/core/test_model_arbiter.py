"""L1, L2: device time between models."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi._core import parts

weights_lists = st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4)


@given(
    weights_lists, st.integers(1, 5_000), st.integers(0, 2_000), st.integers(1, 30_000), st.integers(0, 2**32)
)
def test_backlogged_models_share_device_time_by_weight(
    weights: list[float], quantum: int, residency: int, longest: int, seed: int
) -> None:
    """L1 over every interval in which both are backlogged; a residency lengthens the longest turn."""
    rng = random.Random(seed)
    arbiter = parts.ModelArbiter(weights, quantum, residency)
    used = [0.0] * len(weights)
    gaps: dict[tuple[int, int], list[float]] = {}
    backlogged = [False] * len(weights)
    bound = {w: 2 * (quantum + (longest + residency) / w) for w in weights}
    for step in range(200):
        for model in range(len(weights)):
            if step == 0 or rng.random() < 0.02:
                backlogged[model] = not backlogged[model]
                arbiter.set_backlogged(model, backlogged=backlogged[model])
                gaps = {pair: range_ for pair, range_ in gaps.items() if model not in pair}
        chosen = arbiter.next()
        assert (chosen is None) == (not any(backlogged)), "L2: only an idle device has no next model"
        if chosen is None:
            continue
        assert backlogged[chosen]
        assert arbiter.next() == chosen, "asking twice changes nothing"
        took = rng.randint(0, longest)
        arbiter.charge(chosen, took)
        used[chosen] += took
        both = [m for m in range(len(weights)) if backlogged[m]]
        for a, b in itertools.combinations(both, 2):
            gap = used[a] / weights[a] - used[b] / weights[b]
            low, high = gaps.get((a, b), [gap, gap])
            gaps[a, b] = [min(low, gap), max(high, gap)]
            allowed = bound[min(weights[a], weights[b])]
            assert gaps[a, b][1] - gaps[a, b][0] <= allowed * (1 + 1e-9) + 1e-6


def test_an_idle_model_yields_at_once_and_comes_back_without_credit() -> None:
    arbiter = parts.ModelArbiter([1.0, 1.0], 1_000)
    arbiter.set_backlogged(0, backlogged=True)
    arbiter.set_backlogged(1, backlogged=True)
    assert arbiter.next() == 0
    arbiter.set_backlogged(0, backlogged=False)
    assert arbiter.next() == 1
    assert arbiter.deficit(0) == 0.0
    arbiter.charge(1, 10)
    arbiter.set_backlogged(1, backlogged=False)
    assert arbiter.next() is None


def test_one_batch_of_many_quanta_is_paid_back_without_a_round_per_quantum() -> None:
    arbiter = parts.ModelArbiter([1.0, 1.0], 1)
    arbiter.set_backlogged(0, backlogged=True)
    assert arbiter.next() == 0
    arbiter.charge(0, 10**12)
    assert arbiter.next() == 0, "alone it goes on, whatever it owes"
    arbiter.set_backlogged(1, backlogged=True)
    arbiter.charge(0, 10**12)
    assert arbiter.next() == 1


def test_a_model_keeps_the_device_for_its_minimum_residency() -> None:
    arbiter = parts.ModelArbiter([1.0, 1.0], 10, 1_000)
    arbiter.set_backlogged(0, backlogged=True)
    arbiter.set_backlogged(1, backlogged=True)
    turns = []
    for _ in range(40):
        model = arbiter.next()
        assert model is not None
        turns.append(model)
        arbiter.charge(model, 100)
    switches = sum(a != b for a, b in itertools.pairwise(turns))
    assert switches <= 4


@pytest.mark.parametrize(
    ("weights", "quantum", "residency", "text"),
    [
        ([1.0, 0.0], 10, 0, r"device_weight must lie in \[1/1024, 1024\], got 0"),
        ([float("nan")], 10, 0, "device_weight must lie in"),
        ([float("inf")], 10, 0, "device_weight must lie in"),
        ([1e-4], 10, 0, "device_weight must lie in"),
        ([1.0], 0, 0, r"quantum_us must be positive and at most 2\^53, got 0"),
        ([1.0], 10, -1, r"min_residency_us must not be negative nor above 2\^53, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    weights: list[float], quantum: int, residency: int, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        parts.ModelArbiter(weights, quantum, residency)
