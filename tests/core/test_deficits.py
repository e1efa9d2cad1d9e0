"""D1, D3 and the rules of deficits, against one number per tenant."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airi._core import parts

from .naive_locality import DeficitLedger
from .naive_parts import UNIT

WEIGHTS = [0.25, 1.0, 3.0]


class DeficitMachine(RuleBasedStateMachine):
    """Tenants queue, dispatch, are charged and end; deficits, refills and the choice are compared."""

    @initialize(
        quantum=st.sampled_from([UNIT // 8, 7 * UNIT, 40 * UNIT, 1000 * UNIT]), max_idle=st.integers(0, 3)
    )
    def start(self, quantum: int, max_idle: int) -> None:
        self.ledger = parts.DeficitLedger(quantum, max_idle)
        self.naive = DeficitLedger(quantum, max_idle=max_idle)

    @rule(
        tenant=st.integers(0, 5),
        weight=st.sampled_from(WEIGHTS),
        rank=st.integers(0, 3),
        head=st.tuples(st.integers(0, 3), st.integers(0, 9)),
    )
    def enter_or_change_candidate(self, tenant: int, weight: float, rank: int, head: tuple[int, int]) -> None:
        head = (head[0], head[1] * 6 + tenant)
        if tenant in self.naive.heads:
            self.ledger.offer(tenant, rank, *head)
        else:
            self.ledger.enter(tenant, weight, rank, *head)
            self.naive.enter(tenant, weight, head)
        self.naive.deficits.offers[tenant] = rank, head

    @precondition(lambda self: hasattr(self, "naive") and self.naive.heads)
    @rule(service=st.integers(0, 50), more=st.booleans())
    def dispatch_the_next(self, service: int, more: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
        tenant = self.ledger.next()
        assert tenant is not None
        assert tenant == self.naive.deficits.next()
        self.ledger.begin_work(tenant)
        self.naive.running[tenant] = self.naive.running.get(tenant, 0) + 1
        if not more:
            self.ledger.leave(tenant)
            self.naive.leave(tenant)
        self.ledger.charge(tenant, service)
        self.naive.charge(tenant, service)

    @rule(tenant=st.integers(0, 5))
    def leave_without_a_dispatch(self, tenant: int) -> None:
        if tenant in self.naive.heads:
            self.ledger.leave(tenant)
            self.naive.leave(tenant)

    @rule(tenant=st.integers(0, 5), service=st.integers(0, 20))
    def serve_running_work(self, tenant: int, service: int) -> None:
        if self.naive.running.get(tenant):
            self.ledger.charge(tenant, service)
            self.naive.charge(tenant, service)

    @rule(tenant=st.integers(0, 5))
    def end_work(self, tenant: int) -> None:
        if self.naive.running.get(tenant):
            self.ledger.end_work(tenant)
            self.naive.end_work(tenant)

    @rule()
    def rebase(self) -> None:
        self.ledger.rebase()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check_invariants()
        deficits = self.naive.deficits
        assert self.ledger.next() == deficits.next()
        assert self.ledger.num_refills == deficits.refills
        for tenant in self.naive.counter:
            assert self.ledger.deficit(tenant) == deficits.deficit[tenant]
        assert all(self.ledger.deficit(t) <= deficits.quantum for t in self.naive.heads)
        assert self.ledger.num_known == len(self.naive.counter)


TestDeficitMachine = DeficitMachine.TestCase


class Backlog:
    """Tenants whose queues never run dry; whoever is next is charged for a prompt at once and for tokens later."""

    def __init__(self, seed: int, quantum: int, tenants: int = 4) -> None:
        self.rng = random.Random(seed)
        self.ledger = parts.DeficitLedger(quantum * UNIT)
        self.weights = {t: self.rng.choice([0.5, 1.0, 2.0]) for t in range(tenants)}
        self.ids = itertools.count()
        for t, weight in self.weights.items():
            self.ledger.enter(t, weight, self.rng.randint(0, 9), 0, next(self.ids))
        self.served = dict.fromkeys(self.weights, 0)
        self.to_come = dict.fromkeys(self.weights, 0)
        self.work = 0
        """I: the most that one tenant may still gain, just after a dispatch."""
        self.order: list[int] = []

    def serve(self, tenant: int, service: int) -> None:
        self.ledger.charge(tenant, service)
        self.served[tenant] += service * round(UNIT / self.weights[tenant])

    def dispatch(self) -> int:
        refills = self.ledger.num_refills
        tenant = self.ledger.next()
        assert tenant is not None
        self.order.append(tenant)
        prompt, output = self.rng.randint(1, 30), self.rng.randint(1, 20)
        self.ledger.begin_work(tenant)
        self.serve(tenant, prompt)
        self.ledger.offer(tenant, self.rng.randint(0, 9), 0, next(self.ids))
        self.to_come[tenant] += output
        cost = round(UNIT / self.weights[tenant])
        self.work = max(self.work, (prompt + self.to_come[tenant]) * cost)
        return self.ledger.num_refills - refills

    def decode(self) -> None:
        for tenant, to_come in self.to_come.items():
            tokens = self.rng.randint(0, to_come)
            self.to_come[tenant] -= tokens
            self.serve(tenant, tokens)


@pytest.mark.parametrize("quantum", [1, 50, 400])
@pytest.mark.parametrize("seed", range(10))
def test_service_of_backlogged_tenants_differs_by_at_most_twice_work_and_quantum(
    seed: int, quantum: int
) -> None:
    """D1, with I measured on the very run."""
    run = Backlog(seed, quantum)
    gaps: dict[tuple[int, int], list[int]] = {pair: [] for pair in itertools.combinations(run.served, 2)}
    for _ in range(400):
        run.dispatch()
        for (a, b), seen in gaps.items():
            seen.append(run.served[a] - run.served[b])
        run.decode()
        for (a, b), seen in gaps.items():
            seen.append(run.served[a] - run.served[b])
    bound = 2 * (run.work + quantum * UNIT)
    assert all(max(seen) - min(seen) <= bound for seen in gaps.values())


@pytest.mark.parametrize("quantum", [1, 3, 50, 400])
@pytest.mark.parametrize("seed", range(10))
def test_a_choice_refills_no_more_often_than_the_work_ahead_takes(seed: int, quantum: int) -> None:
    """D3."""
    run = Backlog(seed, quantum)
    most = 0
    for _ in range(400):
        most = max(most, run.dispatch())
        run.decode()
    assert most <= -(-run.work // (quantum * UNIT)) + 1


def test_a_small_quantum_serves_whoever_has_been_served_least() -> None:
    """Q -> 0 is the ledger: what is chosen had a counter within Q of the smallest."""
    run = Backlog(3, 1)
    for _ in range(300):
        counters = {t: run.ledger.counter(t) for t in run.weights}
        assert None not in counters.values()
        smallest = min(c for c in counters.values() if c is not None)
        chosen = run.ledger.next()
        assert chosen is not None
        counter = counters[chosen]
        assert counter is not None
        assert counter < smallest + UNIT
        run.dispatch()
        run.decode()


def test_an_endless_quantum_serves_whoever_ranks_highest() -> None:
    """Q -> infinity is pure longest prefix."""
    ledger = parts.DeficitLedger(1 << 60)
    rng = random.Random(1)
    ranks = {t: rng.randint(0, 20) for t in range(8)}
    for t, rank in ranks.items():
        ledger.enter(t, 1.0, rank, 0, t)
        ledger.begin_work(t)
    for i in range(300):
        chosen = ledger.next()
        assert chosen is not None
        assert ranks[chosen] == max(ranks.values())
        ranks[chosen] = rng.randint(0, 20)
        ledger.charge(chosen, rng.randint(1, 1000))
        ledger.offer(chosen, ranks[chosen], 0, 8 + i)


def test_deficits_as_published_choose_alike_while_all_are_backlogged() -> None:
    """The literal rule, where a refill reaches the backlogged alone: with nobody idle it is the same one."""
    rng = random.Random(9)
    quantum = 25 * UNIT
    ledger = parts.DeficitLedger(quantum)
    ranks = {t: (rng.randint(0, 5), t) for t in range(5)}
    deficits = dict.fromkeys(ranks, 0)
    for t, (rank, head) in ranks.items():
        ledger.enter(t, 1.0, rank, 0, head)
        ledger.begin_work(t)
    for i in range(500):
        while all(q <= 0 for q in deficits.values()):
            deficits = {t: q + quantum for t, q in deficits.items()}
        eligible = [t for t, q in deficits.items() if q > 0]
        wanted = min(eligible, key=lambda t: (-ranks[t][0], -deficits[t], ranks[t][1]))
        assert ledger.next() == wanted
        service = rng.randint(0, 40)
        ledger.charge(wanted, service)
        deficits[wanted] -= service * UNIT
        ranks[wanted] = rng.randint(0, 5), 10 + i
        ledger.offer(wanted, ranks[wanted][0], 0, 10 + i)


def test_an_idle_tenant_comes_back_with_at_most_a_quantum() -> None:
    quantum = 10 * UNIT
    ledger = parts.DeficitLedger(quantum)
    ledger.enter(0, 1.0, 0, 0, 0)
    ledger.begin_work(0)
    for _ in range(100):
        assert ledger.next() == 0
        ledger.charge(0, 7)
    ledger.enter(1, 1.0, 0, 0, 1)
    assert ledger.deficit(1) <= quantum
    assert ledger.deficit(1) == max(ledger.deficit(0), ledger.deficit(1))


def test_a_hundred_thousand_tenants_of_one_request_leave_nothing_behind() -> None:
    """F8 holds with deficits."""
    ledger = parts.DeficitLedger(5 * UNIT, 100)
    for tenant in range(100_000):
        ledger.enter(tenant, 1.0, tenant % 3, tenant, tenant)
        if tenant < 50:
            continue
        chosen = ledger.next()
        assert chosen is not None
        ledger.begin_work(chosen)
        ledger.leave(chosen)
        ledger.charge(chosen, 1 + chosen % 7)
        ledger.end_work(chosen)
    assert ledger.num_known <= 50 + 100
    ledger.check_invariants()


@pytest.mark.parametrize("quantum", [0, -1])
def test_a_quantum_below_one_is_refused(quantum: int) -> None:
    with pytest.raises(ValueError, match="quantum must be at least 1"):
        parts.DeficitLedger(quantum)
