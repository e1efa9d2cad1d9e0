"""F5-F8 and the rules of the tenant ledger, against a dict."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airi._core import parts

from .naive_parts import UNIT, NaiveLedger

WEIGHTS = [0.25, 1.0, 3.0]


class LedgerMachine(RuleBasedStateMachine):
    """Tenants queue, dispatch, are charged and end; counters, virtual time and order are compared."""

    @initialize(max_idle=st.integers(0, 3))
    def start(self, max_idle: int) -> None:
        self.ledger = parts.TenantLedger(max_idle)
        self.naive = NaiveLedger(max_idle=max_idle)
        self.weights = dict.fromkeys(range(6), 1.0)

    @rule(
        tenant=st.integers(0, 5),
        weight=st.sampled_from(WEIGHTS),
        head=st.tuples(st.integers(0, 3), st.integers(0, 9)),
    )
    def enter_or_change_head(self, tenant: int, weight: float, head: tuple[int, int]) -> None:
        head = (head[0], head[1] * 6 + tenant)
        if tenant in self.naive.heads:
            self.ledger.set_head(tenant, *head)
            self.naive.heads[tenant] = head
        else:
            self.ledger.enter(tenant, weight, *head)
            self.naive.enter(tenant, weight, head)

    @precondition(lambda self: hasattr(self, "naive") and self.naive.heads)
    @rule(service=st.integers(0, 50), more=st.booleans())
    def dispatch_the_next(self, service: int, more: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
        tenant = self.ledger.next()
        assert tenant is not None
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

    @rule(tenant=st.integers(0, 5), weight=st.sampled_from(WEIGHTS))
    def change_weight(self, tenant: int, weight: float) -> None:
        self.ledger.set_weight(tenant, weight)
        if tenant in self.naive.counter:
            self.naive.cost[tenant] = round(UNIT / weight)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check_invariants()
        order = self.naive.order()
        assert self.ledger.next() == (order[0] if order else None)
        for limit in range(len(order) + 2):
            assert self.ledger.order(limit) == order[:limit]
        assert self.ledger.virtual_time == self.naive.now
        assert {t: self.ledger.counter(t) for t in range(6)} == {
            t: self.naive.counter.get(t) for t in range(6)
        }
        assert self.ledger.num_known == len(self.naive.counter)
        assert self.ledger.lost_debt == self.naive.lost_debt


TestLedgerMachine = LedgerMachine.TestCase


class Ledger(Protocol):
    """What serve() needs of a ledger."""

    def enter(self, tenant: int, weight: float, arrival: int, request_id: int) -> None: ...
    def leave(self, tenant: int) -> None: ...
    def begin_work(self, tenant: int) -> None: ...
    def end_work(self, tenant: int) -> None: ...
    def charge(self, tenant: int, service: int) -> None: ...
    def next(self) -> int | None: ...


class WithoutLift(NaiveLedger):
    """The published ledger: whoever comes back to an empty system keeps the counter it left with."""

    def __init__(self) -> None:
        super().__init__(lifts=False)

    def enter(self, tenant: int, weight: float, *head: int) -> None:  # type: ignore[override]
        super().enter(tenant, weight, (head[0], head[1]))

    def begin_work(self, tenant: int) -> None:
        self.running[tenant] = self.running.get(tenant, 0) + 1

    def next(self) -> int | None:
        order = self.order()
        return order[0] if order else None


def serve(ledger: Ledger, requests: dict[int, int], service: int) -> dict[int, list[int]]:
    """One server, one request at a time; returns what each tenant was served by the time of each dispatch."""
    left = dict(requests)
    done = dict.fromkeys(left, 0)
    history: dict[int, list[int]] = {t: [] for t in left}
    for tenant in left:
        ledger.enter(tenant, 1.0, 0, tenant)
    while (chosen := ledger.next()) is not None:
        left[chosen] -= 1
        ledger.begin_work(chosen)
        if not left[chosen]:
            ledger.leave(chosen)
        ledger.charge(chosen, service)
        done[chosen] += service
        ledger.end_work(chosen)
        if not all(left.values()):
            break
        for t, served in history.items():
            served.append(done[t])
    while (rest := ledger.next()) is not None:
        ledger.leave(rest)
    return history


def widest_gap(ledger: Ledger) -> int:
    """Tenant 0 works alone; the system empties; then both work: how unequal are they served?"""
    serve(ledger, {0: 50}, 10)
    together = serve(ledger, {0: 60, 1: 60}, 10)
    return max(abs(a - b) for a, b in zip(together[0], together[1], strict=True))


def test_the_empty_system_gives_no_credit_to_those_who_stayed_away() -> None:
    """F5: with the lift the gap is one request; without it the newcomer is served until it has caught up."""
    assert widest_gap(parts.TenantLedger()) <= 2 * 10
    assert widest_gap(WithoutLift()) >= 400


def test_an_idle_tenant_comes_back_at_the_virtual_time() -> None:
    ledger = parts.TenantLedger()
    ledger.enter(1, 1.0, 0, 1)
    ledger.enter(2, 1.0, 0, 2)
    ledger.leave(2)
    for _ in range(10):
        ledger.begin_work(1)
        ledger.charge(1, 7)
        ledger.end_work(1)
    ledger.enter(2, 1.0, 9, 3)
    assert ledger.counter(2) == ledger.counter(1) == 70 * UNIT


def test_a_tenant_that_worked_off_its_queue_pays_for_what_still_runs() -> None:
    """Its queue is empty, its work goes on: the virtual time does not fall back for who comes next."""
    ledger = parts.TenantLedger()
    ledger.enter(1, 1.0, 0, 1)
    for i in range(100):
        ledger.begin_work(1)
        ledger.leave(1)
        ledger.charge(1, 10)
        ledger.enter(1, 1.0, i, i)
    ledger.begin_work(1)
    ledger.leave(1)
    ledger.enter(2, 1.0, 200, 200)
    gap = ledger.counter(1) or 0
    gap -= ledger.counter(2) or 0
    assert gap <= 10 * UNIT


def random_order(shuffle: Callable[[list[int]], None]) -> list[int]:
    ledger = parts.TenantLedger()
    tenants = list(range(20))
    shuffle(tenants)
    for tenant in tenants:
        ledger.enter(tenant, 1.0, tenant % 3, 100 - tenant)
    return ledger.order(20)


def test_ties_are_broken_by_arrival_and_id_and_not_by_insertion() -> None:
    """F6."""
    expected = sorted(range(20), key=lambda t: (t % 3, 100 - t))
    for seed in range(5):
        assert random_order(random.Random(seed).shuffle) == expected


def test_rebasing_changes_no_decision() -> None:
    """F7."""
    rng = random.Random(1)
    plain, rebased = parts.TenantLedger(), parts.TenantLedger()
    for tenant in range(5):
        for ledger in (plain, rebased):
            ledger.enter(tenant, 0.3 + tenant, 0, tenant)
    for _ in range(500):
        chosen = plain.next()
        assert chosen is not None
        assert rebased.order(9) == plain.order(9)
        service = rng.randint(0, 1000)
        for ledger in (plain, rebased):
            ledger.charge(chosen, service)
        if rng.random() < 0.1:
            rebased.rebase()
            rebased.check_invariants()
    assert plain.virtual_time > rebased.virtual_time


def test_counters_never_overflow() -> None:
    ledger = parts.TenantLedger()
    ledger.enter(0, 1 / 1024, 0, 0)
    ledger.enter(1, 1.0, 0, 1)
    for _ in range(200):
        tenant = ledger.next()
        assert tenant is not None
        ledger.charge(tenant, 2**31)
        ledger.check_invariants()
    counter = ledger.counter(0)
    assert counter is not None
    assert 0 <= counter < 2**62


def pass_through(ledger: parts.TenantLedger, count: int, service: int) -> None:
    """Tenant -1 stays backlogged and is charged 1 per 100 others, who ask once and never again."""
    ledger.enter(-1, 1.0, 0, 0)
    for tenant in range(count):
        ledger.enter(tenant, 1.0, tenant, tenant)
        ledger.begin_work(tenant)
        ledger.leave(tenant)
        ledger.charge(tenant, service)
        ledger.end_work(tenant)
        if tenant % 100 == 99:
            ledger.charge(-1, 1)


def test_a_hundred_thousand_passing_tenants_leave_no_state_behind() -> None:
    """F8: what idles at or below the virtual time is forgotten without loss."""
    ledger = parts.TenantLedger(max_idle=1000)
    pass_through(ledger, 100_000, 1)
    assert ledger.num_known <= 101
    assert ledger.lost_debt == 0


def test_beyond_the_cap_the_smallest_debts_are_dropped_and_counted() -> None:
    ledger = parts.TenantLedger(max_idle=50)
    pass_through(ledger, 1_000, 30)
    assert ledger.num_known <= 51
    assert ledger.lost_debt > 0


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-9, 1e9, float("nan")])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight must lie in \[1/1024, 1024\]"):
        parts.TenantLedger().enter(1, weight, 0, 0)


def test_misuse_is_refused_and_changes_nothing() -> None:
    ledger = parts.TenantLedger()
    ledger.enter(1, 1.0, 0, 10)
    ledger.enter(2, 1.0, 0, 20)
    with pytest.raises(ValueError, match="service must be at least 0, got -1"):
        ledger.charge(1, -1)
    ledger.begin_work(1)
    ledger.charge(1, 5)
    ledger.leave(1)
    with pytest.raises(ValueError, match="tenant 1 has an empty queue"):
        ledger.leave(1)
    with pytest.raises(ValueError, match="tenant 1 has an empty queue"):
        ledger.set_head(1, 0, 11)
    ledger.end_work(1)
    with pytest.raises(ValueError, match="tenant 1 has neither a queue nor running work"):
        ledger.begin_work(1)
    with pytest.raises(ValueError, match="tenant 1 has neither a queue nor running work"):
        ledger.charge(1, 1)
    with pytest.raises(ValueError, match="tenant 3 is not known"):
        ledger.leave(3)
    assert ledger.order(10) == [2]
    ledger.check_invariants()
