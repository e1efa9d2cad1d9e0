"""L1, L2: device time between models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi._core import parts

weights_lists = st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4)


@given(weights_lists, st.integers(1, 5_000), st.integers(0, 2_000), st.data())
def test_backlogged_models_share_device_time_by_weight(
    weights: list[float], quantum: int, residency: int, data: st.DataObject
) -> None:
    """L1 over every interval in which both are backlogged; a residency lengthens the longest turn."""
    arbiter = parts.ModelArbiter(weights, quantum, residency)
    longest = data.draw(st.integers(1, 30_000))
    used = [0.0] * len(weights)
    since: dict[tuple[int, int], list[float]] = {}
    backlogged = [False] * len(weights)
    for step in range(150):
        changes = [True] * len(weights) if step == 0 else data.draw(some_flips(len(weights)))
        for model, flip in enumerate(changes):
            if flip:
                backlogged[model] = not backlogged[model]
                arbiter.set_backlogged(model, backlogged[model])
                since = {pair: gaps for pair, gaps in since.items() if model not in pair}
        model = arbiter.next()
        assert (model is None) == (not any(backlogged)), "L2: only an idle device has no next model"
        if model is None:
            continue
        assert backlogged[model]
        assert arbiter.next() == model, "asking twice changes nothing"
        took = data.draw(st.integers(0, longest))
        arbiter.charge(model, took)
        used[model] += took
        for a in range(len(weights)):
            for b in range(a):
                if not (backlogged[a] and backlogged[b]):
                    continue
                gap = used[a] / weights[a] - used[b] / weights[b]
                gaps = since.setdefault((a, b), [gap, gap])
                gaps[:] = [min(gaps[0], gap), max(gaps[1], gap)]
                turn = longest + residency
                bound = 2 * (quantum + turn / min(weights[a], weights[b]))
                assert gaps[1] - gaps[0] <= bound * (1 + 1e-9) + 1e-6


def some_flips(count: int) -> st.SearchStrategy[list[bool]]:
    """Mostly none, so that models stay backlogged together for a while."""
    return st.one_of(
        st.just([False] * count), st.just([False] * count), st.lists(st.booleans(), min_size=count, max_size=count)
    )


def test_an_idle_model_yields_at_once_and_comes_back_without_credit() -> None:
    arbiter = parts.ModelArbiter([1.0, 1.0], 1_000)
    arbiter.set_backlogged(0, True)
    arbiter.set_backlogged(1, True)
    assert arbiter.next() == 0
    arbiter.set_backlogged(0, False)
    assert arbiter.next() == 1
    assert arbiter.deficit(0) == 0.0
    arbiter.charge(1, 10)
    arbiter.set_backlogged(1, False)
    assert arbiter.next() is None


def test_one_batch_of_many_quanta_is_paid_back_without_a_round_per_quantum() -> None:
    arbiter = parts.ModelArbiter([1.0, 1.0], 1)
    arbiter.set_backlogged(0, True)
    assert arbiter.next() == 0
    arbiter.charge(0, 10**12)
    assert arbiter.next() == 0, "alone it goes on, whatever it owes"
    arbiter.set_backlogged(1, True)
    arbiter.charge(0, 10**12)
    assert arbiter.next() == 1


def test_a_model_keeps_the_device_for_its_minimum_residency() -> None:
    arbiter = parts.ModelArbiter([1.0, 1.0], 10, 1_000)
    arbiter.set_backlogged(0, True)
    arbiter.set_backlogged(1, True)
    turns = []
    for _ in range(40):
        model = arbiter.next()
        assert model is not None
        turns.append(model)
        arbiter.charge(model, 100)
    switches = sum(a != b for a, b in zip(turns, turns[1:], strict=False))
    assert switches <= 4


@pytest.mark.parametrize(
    ("weights", "quantum", "residency", "text"),
    [
        ([1.0, 0.0], 10, 0, "device_weight must be positive, got 0"),
        ([float("nan")], 10, 0, "device_weight must be positive"),
        ([1.0], 0, 0, "quantum_us must be positive, got 0"),
        ([1.0], 10, -1, "min_residency_us must not be negative, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    weights: list[float], quantum: int, residency: int, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        parts.ModelArbiter(weights, quantum, residency)
