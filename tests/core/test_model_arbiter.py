"""L1, L2, L4: device time between models."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi import _core
from airi._core import parts

from .harness import Config, Executor, ModelSpec

weights_lists = st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4)


@given(
    weights_lists,
    st.integers(1, 5_000),
    st.integers(0, 2_000),
    st.sampled_from([0, 0, 1, 700, 20_000]),
    st.integers(1, 30_000),
    st.integers(0, 2**32),
)
def test_backlogged_models_share_device_time_by_weight(
    weights: list[float], quantum: int, residency: int, borrow: int, longest: int, seed: int
) -> None:
    """L1 over every interval in which both are backlogged; a residency lengthens the longest turn, as a loan does."""
    rng = random.Random(seed)
    arbiter = parts.ModelArbiter(weights, quantum, residency, borrow)
    used = [0.0] * len(weights)
    gaps: dict[tuple[int, int], list[float]] = {}
    backlogged = [False] * len(weights)
    bound = {w: 2 * (quantum + (longest + residency + borrow) / w) for w in weights}
    for step in range(200):
        for model in range(len(weights)):
            if step == 0 or rng.random() < 0.02:
                backlogged[model] = not backlogged[model]
                arbiter.set_backlogged(model, backlogged=backlogged[model])
                gaps = {pair: range_ for pair, range_ in gaps.items() if model not in pair}
        for model in range(len(weights)):
            arbiter.set_pressed(model, pressed=rng.random() < 0.3)
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


def pressed_run(borrow: int, steps: int = 400) -> tuple[list[int], float]:
    """Who ran, where model 1 is pressed all the time; and the largest debt it had. A batch takes 100."""
    arbiter = parts.ModelArbiter([1.0, 1.0], 1_000, 0, borrow)
    for model in (0, 1):
        arbiter.set_backlogged(model, backlogged=True)
    arbiter.set_pressed(1, pressed=True)
    ran, debt = [], 0.0
    for _ in range(steps):
        chosen = arbiter.next()
        assert chosen is not None
        arbiter.charge(chosen, 100)
        ran.append(chosen)
        debt = max(debt, -arbiter.deficit(1))
    return ran, debt


def test_a_pressed_model_runs_before_its_turn_and_pays_back() -> None:
    """L4: up to the loan and a batch; over time it gets what it would have got."""
    ran, debt = pressed_run(3_000)
    assert ran[:30] == [1] * 30, "it borrows at once"
    assert ran[30] == 0
    assert 3_000 <= debt <= 3_000 + 100
    assert abs(ran.count(0) - ran.count(1)) <= 2 * (1_000 + 3_000 + 100) / 100
    without, _ = pressed_run(0)
    assert without[:10] == [0] * 10


def test_a_model_that_passes_keeps_its_turn_and_what_it_is_owed() -> None:
    """Now and then model 0 has nothing to run for a step; the other runs instead, and pays for it."""
    arbiter = parts.ModelArbiter([1.0, 3.0], 1_000)
    used = [0, 0]
    for step in range(4_000):
        for model in (0, 1):
            arbiter.set_backlogged(model, backlogged=True)
        chosen = arbiter.next()
        assert chosen is not None
        if step % 7 == 0:
            owed = arbiter.deficit(chosen)
            arbiter.pass_turn(chosen)
            stand_in = arbiter.next()
            assert stand_in == 1 - chosen
            assert arbiter.deficit(chosen) == owed
            arbiter.charge(stand_in, 100)
            used[stand_in] += 100
            arbiter.set_backlogged(chosen, backlogged=True)
            assert arbiter.next() == chosen, "it is its turn still"
        else:
            arbiter.charge(chosen, 100)
            used[chosen] += 100
    assert abs(used[0] - used[1] / 3) <= 2 * (1_000 + 100)


def test_where_all_pass_nobody_runs() -> None:
    arbiter = parts.ModelArbiter([1.0, 1.0], 1_000)
    for model in (0, 1):
        arbiter.set_backlogged(model, backlogged=True)
        arbiter.pass_turn(model)
    assert arbiter.next() is None
    arbiter.set_backlogged(1, backlogged=True)
    assert arbiter.next() == 1


def test_pressed_models_among_themselves_go_by_what_they_are_owed() -> None:
    arbiter = parts.ModelArbiter([1.0, 2.0, 1.0], 10, 0, 500)
    for model in range(3):
        arbiter.set_backlogged(model, backlogged=True)
        arbiter.charge(model, 100)
    arbiter.set_pressed(1, pressed=True)
    arbiter.set_pressed(2, pressed=True)
    assert arbiter.next() == 1, "it owes 50 per weight, the other 100"
    arbiter.charge(1, 200)
    assert arbiter.next() == 2


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
    ("weights", "quantum", "residency", "borrow", "text"),
    [
        ([1.0, 0.0], 10, 0, 0, r"device_weight must lie in \[1/1024, 1024\], got 0"),
        ([float("nan")], 10, 0, 0, "device_weight must lie in"),
        ([float("inf")], 10, 0, 0, "device_weight must lie in"),
        ([1e-4], 10, 0, 0, "device_weight must lie in"),
        ([1.0], 0, 0, 0, r"quantum_us must be positive and at most 2\^53, got 0"),
        ([1.0], 10, 0, -1, r"max_borrow_us must not be negative nor above 2\^53, got -1"),
        ([1.0], 10, -1, 0, r"min_residency_us must not be negative nor above 2\^53, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    weights: list[float], quantum: int, residency: int, borrow: int, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        parts.ModelArbiter(weights, quantum, residency, borrow)


def chats_beside_batches(itl_us: int, max_borrow_us: int) -> tuple[list[int], _core.ModelStats]:
    """Whose steps run, and what comes of a chat model, beside one that always has prompts to compute.

    Decodes of the chats take 300 microseconds; each step of the other takes 4,000, and turns are long.
    """
    chat = ModelSpec(max_num_seqs=3, max_batch_tokens=64, targets=((None, itl_us),))
    batch = ModelSpec(blocks=400, max_num_seqs=4, max_batch_tokens=64)
    executor = Executor([chat, batch], Config(quantum_us=20_000, max_borrow_us=max_borrow_us))
    for i in range(200):
        executor.accepted([1 + i % 7] * 50, model=1, max_new=2)
    chats = [executor.accepted([5] * 4, model=0, max_new=50) for _ in range(12)]
    turns = []
    while not executor.finished.keys() >= set(chats):
        step = executor.plan()
        assert step is not None
        turns.append(step.info.model)
        executor.commit(step, device_us=300 if step.info.model == 0 else 4_000)
        executor.runtime.check_invariants()
    return turns, executor.runtime.stats()[0]


def test_a_model_that_would_be_late_runs_before_its_turn() -> None:
    """L4 in the runtime: turns of 20 milliseconds make streams with a promise of 5 late, unless they borrow."""
    _, waits = chats_beside_batches(5_000, 0)
    assert waits.next_tokens_late > 0
    _, borrows = chats_beside_batches(5_000, 50_000)
    assert borrows.next_tokens_late < waits.next_tokens_late / 4
    assert (
        borrows.next_tokens_late + borrows.next_tokens_on_time
        == waits.next_tokens_late + waits.next_tokens_on_time
    )


def test_a_model_that_is_late_already_borrows_nothing_for_that() -> None:
    """It may borrow half a step of the other. Once that made it late, the rest of the turn makes it no later."""
    turns, _ = chats_beside_batches(500, 2_000)
    assert [len(list(steps)) for model, steps in itertools.groupby(turns) if model == 1] == [5, 5]
