"""Planning a step while the one before runs: the same texts, nothing leaked, nothing overwritten too early."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi import _core
from airi._core import Admission, FinishReason

from .harness import Config, Executor, ModelSpec
from .pipeline import Pipeline


def stopping_rule(request: int, draw: int, last: int) -> int:
    """Small tokens, so that stop ids are met now and then and prefixes meet."""
    return (last * 5 + draw * 3 + request) % 7


def random_spec(rng: random.Random, num_bands: int) -> ModelSpec:
    block_size = rng.choice([1, 2, 4])
    return ModelSpec(
        blocks=rng.randint(40, 120) // block_size,
        block_size=block_size,
        max_model_len=rng.randint(36, 80),
        max_num_seqs=rng.randint(1, 8),
        max_batch_tokens=rng.randint(1, 40),
        admission=rng.choice(list(Admission)),
        prefix_caching=rng.random() < 0.8,
        targets=rng.choice([(), ((2000, 150),), ((None, 300), (5000, None), (0, 0))])[:num_bands],
        itl_credit=rng.choice([0.0, 1.0]),
    )


def random_config(rng: random.Random) -> Config:
    return Config(
        num_bands=rng.randint(1, 3),
        aging_us=rng.choice([None, 900]),
        bypass_tokens=rng.choice([0, 60]),
        max_preemptions=rng.randint(0, 3),
        fairness_gap_tokens=rng.choice([None, None, 20]),
        quantum_us=rng.choice([1, 500]),
        max_borrow_us=rng.choice([0, 400]),
        locality_quantum_tokens=rng.choice([None, 1, 40]),
        dedupe_steps=rng.choice([0, 1, 6]),
    )


def submit_some(rng: random.Random, executor: Executor) -> None:
    shared = [rng.randint(0, 1)] * rng.randint(0, 16)
    executor.submit(  # or refused, beside quotas: by both alike
        shared + [rng.randint(0, 6) for _ in range(rng.randint(1, 10))],
        model=rng.randrange(len(executor.specs)),
        tenant=rng.randint(0, 3),
        band=rng.randrange(executor.config.num_bands),
        max_new=rng.randint(1, 14),
        min_new=rng.choice([0, 0, 3]),
        stop=rng.choice([(), (0,), (1, 2)]),
    )


def drive(executor: Executor, rng: random.Random, ticks: int) -> None:
    for tenant in rng.sample(range(4), rng.choice([0, 0, 2])):
        executor.runtime.set_kv_quota(tenant, rng.randrange(len(executor.specs)), rng.randint(1, 6))
    for _ in range(ticks):
        while rng.random() < 0.4:
            submit_some(rng, executor)
        executor.step(device_us=rng.randint(0, 200))
        executor.runtime.check_invariants()
    executor.run()


@pytest.mark.parametrize("seed", range(30))
def test_texts_are_those_of_the_synchronous_scheduler(seed: int) -> None:
    """Y1, and by the device's checks Y3."""
    results = []
    for make in (Executor, Pipeline):
        rng = random.Random(seed)
        config = random_config(rng)
        specs = [random_spec(rng, config.num_bands) for _ in range(rng.randint(1, 2))]
        executor = make(specs, config, stopping_rule)
        drive(executor, rng, 80)
        assert all(s.active_blocks == 0 for s in executor.runtime.stats())
        results.append((executor.outputs, executor.finished))
    assert results[0] == results[1]
    assert FinishReason.STOP in results[0][1].values()


@pytest.mark.parametrize("seed", range(30))
def test_a_finished_request_wastes_at_most_one_row(seed: int) -> None:
    """Y2; one that ends by its length wastes none."""
    rng = random.Random(seed)
    config = random_config(rng)
    executor = Pipeline([random_spec(rng, config.num_bands)], config, stopping_rule)
    drive(executor, rng, 80)
    assert all(count == 1 for count in executor.wasted.values())
    assert all(executor.finished[r] == FinishReason.STOP for r in executor.wasted)


def test_some_row_is_wasted_where_requests_stop() -> None:
    executor = Pipeline(rule=lambda request, draw, last: draw)
    request = executor.accepted([5, 5], max_new=9, stop=(3,))
    executor.run()
    assert executor.outputs[request] == [0, 1, 2, 3]
    assert executor.wasted == {request: 1}


def test_the_last_token_by_length_is_not_planned_beyond() -> None:
    executor = Pipeline()
    request = executor.accepted([1, 2, 3], max_new=3)
    executor.run()
    assert sum(len(s.rows) for s in executor.steps) == 3
    assert executor.finished[request] == FinishReason.LENGTH
    assert executor.wasted == {}


def test_one_token_of_each_request_leaves_nothing_to_plan_before_its_commit() -> None:
    executor = Pipeline()
    executor.accepted([1, 2], max_new=1)
    assert executor.plan() is not None
    assert executor.plan() is None
    executor.commit(executor.in_flight.popleft())
    assert not executor.runtime.has_work()


def test_a_third_step_is_refused_and_commits_come_in_order() -> None:
    executor = Pipeline()
    executor.accepted([1, 2], max_new=5)
    first, second = executor.plan(), executor.plan()
    assert first is not None
    assert second is not None
    with pytest.raises(ValueError, match="step 0 must be committed"):
        executor.plan()
    one, none = np.array([1], np.int32), np.zeros(1, np.uint8)
    with pytest.raises(ValueError, match="oldest uncommitted step"):
        executor.runtime.commit(second.info.step_id, one, one, none, 100)


def test_a_decode_continues_from_a_token_that_is_not_known_yet() -> None:
    executor = Pipeline()
    executor.accepted([1, 2], max_new=3)
    executor.plan()
    ahead = executor.plan()
    assert ahead is not None
    (row,) = ahead.rows
    assert row.pending
    assert row.tokens == [-1]
    assert row.start == 2
    assert row.draw == 1


def test_a_preempted_request_comes_back_with_the_token_it_was_waiting_for() -> None:
    spec = ModelSpec(blocks=4, block_size=2, max_model_len=8, admission=Admission.MAX_UTIL)
    executor = Pipeline([spec])
    requests = [executor.accepted([n, n], max_new=6) for n in (1, 2)]
    executor.run()
    assert executor.runtime.stats()[0].preemptions > 0
    roomy = Executor([replace(spec, blocks=8)])
    expected = [roomy.accepted([n, n], max_new=6) for n in (1, 2)]
    roomy.run()
    assert [executor.outputs[r] for r in requests] == [roomy.outputs[r] for r in expected]


def test_what_is_planned_out_makes_room_before_anybody_is_preempted() -> None:
    spec = ModelSpec(blocks=3, block_size=2, max_model_len=6, admission=Admission.MAX_UTIL)
    executor = Pipeline([spec])
    short = executor.accepted([1], max_new=2)
    long = executor.accepted([2], max_new=5)
    executor.run()
    assert executor.runtime.stats()[0].preemptions == 0
    assert len(executor.outputs[short]) == 2
    assert len(executor.outputs[long]) == 5


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=30))
def test_cancels_and_deadlines_at_every_interleaving_leak_nothing(
    seed: int, cuts: list[tuple[int, bool]]
) -> None:
    """Y4: before a plan, between plan and commit, while parked, twice."""
    rng = random.Random(seed)
    config = random_config(rng)
    executor = Pipeline([random_spec(rng, config.num_bands)], config, stopping_rule)
    for back, between in cuts:
        submit_some(rng, executor)
        if rng.random() < 0.2:
            executor.submit([1, 2, 3], max_new=8, deadline=executor.now + rng.randint(1, 500))
        if between:
            if len(executor.in_flight) < 2:
                executor.plan()
            executor.runtime.cancel(executor.next_id - 1 - back)
            if executor.in_flight:
                executor.commit(executor.in_flight.popleft(), device_us=rng.randint(0, 100))
        else:
            executor.runtime.cancel(executor.next_id - 1 - back)
            executor.step(device_us=rng.randint(0, 100))
        executor.runtime.check_invariants()
    executor.run()
    assert set(executor.finished) == set(executor.outputs)
    stats = executor.runtime.stats()[0]
    assert (stats.active_blocks, stats.waiting, stats.running) == (0, 0, 0)


@pytest.mark.parametrize("status", [_core.RowStatus.NAN, _core.RowStatus.FAILED])
def test_a_failing_row_ends_its_request_though_another_row_of_it_is_planned(
    status: _core.RowStatus,
) -> None:
    executor = Pipeline()
    bad, good = executor.accepted([1, 2], max_new=6), executor.accepted([3, 4], max_new=6)
    executor.plan()
    executor.plan()
    executor.commit(executor.in_flight.popleft(), status={bad: int(status)})
    assert bad in executor.finished
    assert executor.outputs[bad] == []
    executor.run()
    assert len(executor.outputs[good]) == 6
    executor.runtime.check_invariants()


def test_two_models_alternate_though_one_waits_for_its_last_tokens() -> None:
    executor = Pipeline([ModelSpec(), ModelSpec()], Config(quantum_us=1))
    requests = [executor.accepted([1, 2], max_new=4, model=m) for m in (0, 1, 0, 1)]
    executor.run()
    assert all(len(executor.outputs[r]) == 4 for r in requests)


def test_the_step_ahead_is_anothers_where_the_model_on_turn_waits_for_its_own() -> None:
    """All that model 0 has to do is on the device; model 1 has something to do."""
    ex = Pipeline([ModelSpec(), ModelSpec()], Config(quantum_us=10_000))
    last = ex.accepted([1, 2, 3], model=0, max_new=1)
    assert ex.plan() is not None
    other = ex.accepted([4, 5, 6], model=1, max_new=4)
    planned = ex.plan()
    assert planned is not None
    assert planned.info.model == 1
    assert [row.request for row in planned.rows] == [other]
    ex.commit(ex.in_flight.popleft())
    ex.run()
    assert ex.finished == {last: FinishReason.LENGTH, other: FinishReason.LENGTH}
