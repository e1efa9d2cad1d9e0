"""D1, D2, D4: cached prefixes order the queue under the tenants' bound, through the whole runtime."""

from __future__ import annotations

import random

import pytest

from .harness import Config, Executor, ModelSpec
from .naive_parts import UNIT
from .test_fairness import FairRun

ENDLESS = 1 << 40


def order_of_first_steps(ex: Executor) -> list[int]:
    return [row.request for step in ex.steps for row in step.rows if row.first]


def family(root: int, length: int) -> list[int]:
    """A prompt prefix that only prompts of the same root share."""
    return [root * 1000 + i for i in range(length)]


@pytest.mark.parametrize("quantum", [20, 200])
@pytest.mark.parametrize("seed", range(12))
def test_with_locality_the_bound_grows_by_two_quanta(seed: int, quantum: int) -> None:
    """D1, with I measured on the very run."""
    run = FairRun(seed, weighted=True, config=Config(locality_quantum_tokens=quantum), prefix_caching=True)
    run.run(300)
    assert run.counter_gap <= run.work + quantum * UNIT
    assert run.service_gap <= 2 * (run.work + quantum * UNIT)


def hits_of_families(quantum: int | None, seed: int) -> tuple[int, int]:
    """Hit and queried tokens of 400 prompts of 40 families over 8 tenants, more than the cache holds."""
    rng = random.Random(seed)
    spec = ModelSpec(blocks=60, max_num_seqs=4, max_batch_tokens=32, max_model_len=80)
    ex = Executor([spec], Config(locality_quantum_tokens=quantum))
    for i in range(400):
        root = rng.randrange(40)
        text = [*family(root, rng.choice([16, 24, 32])), rng.randint(0, 9)]
        ex.accepted(text, max_new=rng.randint(1, 6), tenant=root % 8, arrival=i)
    ex.run()
    stats = ex.runtime.stats()[0]
    return stats.hit_tokens, stats.query_tokens


@pytest.mark.parametrize("seed", range(5))
def test_locality_hits_at_least_what_the_ledger_hits(seed: int) -> None:
    """D2: families come and go in a deep queue."""
    plain, queried = hits_of_families(None, seed)
    bounded, _ = hits_of_families(100, seed)
    endless, _ = hits_of_families(ENDLESS, seed)
    assert plain <= bounded <= endless
    assert endless > plain + queried // 10


def test_of_a_thousand_that_share_what_is_published_none_waits_behind_strangers() -> None:
    """They are matched anew little by little, and yet before they come first."""
    ex = Executor(
        [ModelSpec(blocks=256, max_num_seqs=4, max_batch_tokens=64, max_model_len=80)],
        Config(locality_quantum_tokens=ENDLESS),
    )
    first = ex.accepted([*family(1, 32), 1], max_new=1, tenant=0)
    strangers = [ex.accepted(family(2 + i, 9), max_new=1, tenant=1, arrival=1) for i in range(400)]
    sharers = [ex.accepted([*family(1, 32), 2 + i], max_new=1, tenant=i % 3, arrival=2) for i in range(1000)]
    ex.run()
    order = order_of_first_steps(ex)
    assert order[0] == first
    assert set(order[-380:]) < set(strangers)
    assert all(int(ex.events[r]["num_cached_tokens"]) == 32 for r in order if r in set(sharers[10:]))


def test_the_longest_prefix_is_found_among_a_thousand_waiting() -> None:
    """Whatever the depth: a prompt at the end of the queue that is cached goes first."""
    ex = Executor(
        [ModelSpec(blocks=64, max_num_seqs=1, max_batch_tokens=64)], Config(locality_quantum_tokens=ENDLESS)
    )
    ex.accepted(family(0, 24), max_new=1)
    ex.run()
    strangers = [ex.accepted(family(1 + i, 8), max_new=1) for i in range(1000)]
    relative = ex.accepted([*family(0, 24), 7], max_new=1)
    ex.step()
    assert order_of_first_steps(ex)[1:] == [relative]
    ex.run()
    assert order_of_first_steps(ex)[2:] == strangers


def test_a_block_that_is_published_moves_those_that_wait_for_it() -> None:
    ex = Executor(
        [ModelSpec(blocks=64, max_num_seqs=2, max_batch_tokens=8)], Config(locality_quantum_tokens=ENDLESS)
    )
    publisher = ex.accepted(family(0, 24), max_new=1)
    strangers = [ex.accepted(family(1 + i, 8), max_new=1, arrival=1 + i) for i in range(4)]
    relative = ex.accepted([*family(0, 24), 7], max_new=1, arrival=9)
    ex.run()
    assert order_of_first_steps(ex) == [publisher, relative, *strangers]


def test_a_block_that_is_evicted_moves_back_those_that_matched_it() -> None:
    """A key is an upper bound until its request comes first."""
    ex = Executor([ModelSpec(blocks=8, max_num_seqs=1)], Config(locality_quantum_tokens=ENDLESS))
    ex.accepted(family(0, 8), max_new=1)
    ex.run()
    running = ex.accepted(family(1, 12), max_new=20)
    ex.step()
    late = ex.accepted([*family(0, 8), 3], max_new=1)
    stranger = ex.accepted(family(7, 4), max_new=1, arrival=0)
    ex.run()
    assert ex.runtime.stats()[0].evictions > 0
    assert order_of_first_steps(ex)[1:] == [running, stranger, late]


@pytest.mark.parametrize("quantum", [8, 40, 120])
def test_a_request_without_a_prefix_is_not_passed_for_ever(quantum: int) -> None:
    """D4 inside a tenant: its others are served at most a quantum, and what they still may get, while it waits."""
    ex = Executor([ModelSpec(max_num_seqs=2)], Config(locality_quantum_tokens=quantum))
    ex.accepted(family(0, 16), max_new=1)
    ex.run()
    ex.accepted(family(9, 8), max_new=1)
    start = served = 0
    for i in range(1000):
        for _ in range(4):
            ex.accepted([*family(0, 16), i], max_new=2)
        step = ex.plan()
        assert step is not None
        if any(row.request == 1 for row in step.rows):
            break
        ex.commit(step)
        served = ex.runtime.tenant_counter(0, 0, 0) or 0
        start = start or served
    assert 1 in {row.request for row in ex.steps[-1].rows}
    in_flight = 2 * (1 + 2 * 2)
    assert 0 < served - start <= (quantum + in_flight) * UNIT


@pytest.mark.parametrize("quantum", [10, 100])
def test_a_tenant_without_prefixes_waits_for_its_share_and_no_longer(quantum: int) -> None:
    """D4: between two dispatches of a backlogged tenant each other one gets at most Q + I, once around."""
    tenants = 5
    ex = Executor([ModelSpec(max_num_seqs=2)], Config(locality_quantum_tokens=quantum))
    ex.accepted(family(0, 16), max_new=1)
    ex.run()
    served = longest = 0
    work = 2 * (5 + 2 * 2)
    for i in range(600):
        for tenant in range(1, tenants):
            ex.accepted([*family(0, 16), i], max_new=2, tenant=tenant)
        ex.accepted([5000 + i], max_new=2, tenant=0)
        step = ex.step()
        assert step is not None
        served += sum(row.count + 2 * row.samples for row in step.rows)
        if any(row.first and row.start == 0 for row in step.rows):
            longest, served = max(longest, served), 0
    assert longest <= tenants * (quantum + work)


@pytest.mark.parametrize("quantum", [0, -5, 1 << 41])
def test_a_quantum_that_cannot_be_is_refused(quantum: int) -> None:
    with pytest.raises(ValueError, match=r"locality_quantum_tokens must be between 1 and 2\^40"):
        Executor(config=Config(locality_quantum_tokens=quantum))
