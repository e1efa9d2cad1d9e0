"""The ledger of one gateway process: budgets that survive it, leases, and limits that change."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

import pytest

from airi.errors import LedgerUnavailableError
from airi.policy.ledger import (
    Budget,
    BudgetRecord,
    Demand,
    LimitName,
    Limits,
    LimitTable,
    LocalLedger,
    ProcessLedger,
    Refused,
    Reservation,
    Scope,
)
from airi.policy.ledger.limits import MICRO
from airi.policy.ledger.process import steady_clock

SCOPE = Scope(tenant="a")
HOUR = 3600
NOW = 1_790_000_000_000_000


class Store:
    """Keeps records as a database would: what was saved when the process dies is what the next one finds."""

    def __init__(self) -> None:
        self.records: dict[tuple[Scope, LimitName, int | None], BudgetRecord] = {}
        self.saves = 0
        self.broken = False
        self.slow: asyncio.Event | None = None

    async def load_budgets(self, wanted: Sequence[BudgetRecord]) -> Sequence[BudgetRecord]:
        if self.broken:
            raise OSError("disk full, secret path")
        found = [self.records.get((r.scope, r.name, r.period_s)) for r in wanted]
        return [r for r, w in zip(found, wanted, strict=True) if r and r.period_index == w.period_index]

    async def save_budgets(self, records: Sequence[BudgetRecord]) -> None:
        if self.slow is not None:
            await self.slow.wait()
        if self.broken:
            raise OSError("disk full, secret path")
        self.saves += 1
        self.records |= {(r.scope, r.name, r.period_s): r for r in records}

    def spent(self, name: LimitName = LimitName.BUDGET) -> int:
        return sum(r.spent_micro for r in self.records.values() if r.name is name)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def table(amount: int = 1000, period_s: int | None = HOUR, **other: int) -> LimitTable:
    budget = Budget(amount_micro=amount, period_s=period_s)
    return LimitTable({SCOPE: Limits(budget=budget, device_seconds=budget, **other)})


async def opened(store: Store | None, limits: LimitTable, clock: Clock | None = None) -> ProcessLedger:
    ledger = ProcessLedger(limits, store=store, clock=clock or Clock())
    await ledger.open()
    return ledger


async def crash(ledger: ProcessLedger) -> None:
    """Only the task ends; nothing is saved."""
    await ledger._leases.stop()


async def granted(ledger: ProcessLedger, **demand: int) -> Reservation:
    outcome = await ledger.reserve([SCOPE], Demand(**demand))
    assert isinstance(outcome, Reservation)
    return outcome


async def left(ledger: ProcessLedger, name: LimitName = LimitName.BUDGET) -> int:
    return next(one.remaining for one in await ledger.remaining([SCOPE]) if one.name is name)


async def test_a_crash_never_forgets_what_was_reserved() -> None:
    store, limits = Store(), table(amount=100_000)
    ledger = await opened(store, limits)
    spent = 0
    for cost in (1, 700, 5, 800, 9_000, 3):
        await granted(ledger, cost_micro=cost)
        spent += cost
        assert store.spent() >= spent
        again = await opened(store, limits)
        assert await left(again) <= 100_000 - spent
        await crash(again)
    await crash(ledger)


async def test_what_a_crash_counts_too_much_is_at_most_a_portion_of_the_budget() -> None:
    store, limits = Store(), table(amount=128_000)
    ledger = await opened(store, limits)
    for _ in range(300):
        reservation = await granted(ledger, cost_micro=10)
        await ledger.settle(reservation, Demand(cost_micro=10))
    await crash(ledger)
    assert 3000 <= store.spent() <= 4000
    assert store.saves < 10


async def test_an_orderly_end_saves_what_was_spent_exactly() -> None:
    store, limits = Store(), table(amount=100_000)
    ledger = await opened(store, limits)
    reservation = await granted(ledger, cost_micro=500)
    await ledger.settle(reservation, Demand(cost_micro=123), 77)
    await ledger.close()
    assert store.spent() == 123
    assert store.spent(LimitName.DEVICE) == 77
    again = await opened(store, limits)
    assert await left(again) == 100_000 - 123
    await crash(again)


async def test_a_budget_that_a_reload_brings_back_is_loaded() -> None:
    store, limits = Store(), table(amount=1000)
    ledger = await opened(store, limits)
    await granted(ledger, cost_micro=400)
    await ledger.close()
    again = await opened(store, LimitTable({}))
    store.broken = True
    with pytest.raises(LedgerUnavailableError):
        await again.set_limits(limits)
    store.broken = False
    await again.set_limits(limits)
    assert await left(again) == 600
    await again.set_limits(LimitTable({}))
    await again.set_limits(limits)
    assert await left(again) == 600
    await crash(again)


async def test_device_time_is_saved_before_more_of_it_is_used() -> None:
    store, limits = Store(), table(amount=128_000)
    ledger = await opened(store, limits)
    reservation = await granted(ledger)
    for step in range(1, 50):
        assert await ledger.charge_device(reservation, 400) is None
        assert store.spent(LimitName.DEVICE) >= 400 * step
    await crash(ledger)


async def test_no_money_is_spent_that_cannot_be_saved() -> None:
    store = Store()
    ledger = await opened(store, table(max_parallel_requests=1))
    store.broken = True
    with pytest.raises(
        LedgerUnavailableError, match=r"budgets cannot be kept: their store fails with OSError$"
    ):
        await ledger.reserve([SCOPE], Demand(cost_micro=10))
    assert await left(ledger) == 1000
    store.broken = False
    await granted(ledger, cost_micro=1000)
    await crash(ledger)


async def test_device_time_that_cannot_be_saved_is_not_charged_until_it_is_settled() -> None:
    store = Store()
    ledger = await opened(store, table(amount=1000))
    reservation = await granted(ledger)
    store.broken = True
    with pytest.raises(LedgerUnavailableError):
        await ledger.charge_device(reservation, 300)
    assert await left(ledger, LimitName.DEVICE) == 1000
    assert await ledger.settle(reservation, Demand(), 300), "what is over is settled whatever the store does"
    assert await left(ledger, LimitName.DEVICE) == 700
    with pytest.raises(LedgerUnavailableError):
        await ledger.reserve([SCOPE], Demand())
    store.broken = False
    await granted(ledger)
    assert store.spent(LimitName.DEVICE) >= 300
    await crash(ledger)


async def test_an_orderly_end_that_cannot_be_saved_is_told() -> None:
    store = Store()
    ledger = await opened(store, table())
    store.broken = True
    with pytest.raises(LedgerUnavailableError):
        await ledger.close()


async def test_a_store_that_cannot_be_read_starts_no_ledger() -> None:
    store = Store()
    store.broken = True
    with pytest.raises(LedgerUnavailableError):
        await opened(store, table())


async def test_who_leaves_while_money_is_saved_holds_nothing() -> None:
    store = Store()
    ledger = await opened(store, table(max_parallel_requests=1))
    store.slow = asyncio.Event()
    waiting = asyncio.create_task(ledger.reserve([SCOPE], Demand(cost_micro=10)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    store.slow = None
    assert await left(ledger) == 1000
    await granted(ledger, cost_micro=1000)
    await crash(ledger)


async def test_who_is_granted_while_another_is_saved_is_saved_as_well() -> None:
    store = Store()
    ledger = await opened(store, table(amount=1000))
    store.slow = asyncio.Event()
    waiting = [asyncio.create_task(ledger.reserve([SCOPE], Demand(cost_micro=100))) for _ in range(5)]
    await asyncio.sleep(0)
    store.slow.set()
    await asyncio.gather(*waiting)
    assert store.spent() >= 500
    await crash(ledger)


async def test_a_new_period_starts_without_what_was_spent_in_the_old() -> None:
    store, clock = Store(), Clock()
    ledger = await opened(store, table(), clock)
    await granted(ledger, cost_micro=1000)
    assert isinstance(await ledger.reserve([SCOPE], Demand(cost_micro=1)), Refused)
    clock.now += HOUR * 1_000_000
    await granted(ledger, cost_micro=400)
    assert store.spent() >= 400
    await crash(ledger)
    again = await opened(store, table(), clock)
    assert await left(again) <= 600
    await crash(again)


async def test_money_of_an_old_period_is_not_given_back_to_a_new_one() -> None:
    clock = Clock()
    ledger = await opened(None, table(), clock)
    reservation = await granted(ledger, cost_micro=900)
    for _ in range(1 + HOUR // 20):
        clock.now += 20 * 1_000_000
        assert await ledger.renew() == []
    await granted(ledger, cost_micro=500)
    assert await ledger.settle(reservation, Demand(cost_micro=0))
    assert await left(ledger) == 500
    await crash(ledger)


async def test_a_reservation_that_was_dropped_is_not_renewed() -> None:
    clock = Clock()
    ledger = await opened(None, table(max_parallel_requests=2), clock)
    kept = await granted(ledger)
    await granted(ledger)
    gc.collect()
    assert isinstance(await ledger.reserve([SCOPE], Demand()), Refused)
    for _ in range(2):
        clock.now += 20 * 1_000_000
        await ledger.renew()
    assert await left(ledger, LimitName.PARALLEL) == 1
    assert await ledger.settle(kept, Demand())
    await crash(ledger)


async def test_leases_are_renewed_by_a_task() -> None:
    ledger = ProcessLedger(table(), lease_s=0.15)
    await ledger.open()
    reservation = await granted(ledger)
    await asyncio.sleep(0.5)
    assert await ledger.settle(reservation, Demand())
    await ledger.close()


async def test_a_gateway_that_stalled_learns_at_settle_that_its_lease_ended() -> None:
    clock = Clock()
    ledger = await opened(None, table(amount=1000, max_parallel_requests=1), clock)
    reservation = await granted(ledger, cost_micro=600)
    clock.now += 30 * 1_000_000
    await granted(ledger, cost_micro=100)
    assert await ledger.renew([reservation]) == [reservation]
    assert not await ledger.settle(reservation, Demand(cost_micro=1))
    assert await left(ledger) == 300
    await crash(ledger)


async def test_more_cannot_be_used_than_was_reserved() -> None:
    ledger = await opened(None, table())
    reservation = await granted(ledger, output_tokens=5)
    with pytest.raises(ValueError, match="output_tokens used is 6; accepted: at most the 5 reserved"):
        await ledger.settle(reservation, Demand(output_tokens=6))
    assert await ledger.settle(reservation, Demand(output_tokens=5))
    await crash(ledger)


async def test_device_time_is_over_by_one_step_at_most() -> None:
    ledger = await opened(None, table(amount=1000))
    reservation = await granted(ledger)
    assert await ledger.charge_device(reservation, 999) is None
    over = await ledger.charge_device(reservation, 400)
    assert over is not None
    assert (over.name, over.scope, over.limit, over.remaining) == (LimitName.DEVICE, SCOPE, 1000, 0)
    assert over.reset_us == HOUR * MICRO - (NOW - 4 * 24 * HOUR * MICRO) % (HOUR * MICRO)
    refused = await ledger.reserve([SCOPE], Demand())
    assert isinstance(refused, Refused)
    assert refused.message.startswith("max_device_seconds of tenant 'a' is 0.001: 0 left; retry in")
    await ledger.settle(reservation, Demand())
    await crash(ledger)


async def test_the_end_of_device_time_is_told_before_it_is_saved() -> None:
    store = Store()
    ledger = await opened(store, table(amount=1000))
    reservation = await granted(ledger)
    store.slow = asyncio.Event()
    assert await ledger.charge_device(reservation, 1000) is not None
    store.slow.set()
    await ledger.settle(reservation, Demand())
    assert store.spent(LimitName.DEVICE) == 1000
    await crash(ledger)


async def test_device_time_that_was_charged_ahead_is_given_back() -> None:
    ledger = await opened(None, table(amount=1000))
    reservation = await granted(ledger)
    assert await ledger.charge_device(reservation, 1400) is not None
    assert await ledger.charge_device(reservation, -600) is None
    assert await left(ledger, LimitName.DEVICE) == 200
    await ledger.settle(reservation, Demand(), -300)
    assert await left(ledger, LimitName.DEVICE) == 500
    assert await ledger.charge_device(reservation, -10_000) is None
    assert await left(ledger, LimitName.DEVICE) == 1000
    await crash(ledger)


async def test_limits_that_change_keep_the_counts() -> None:
    ledger = await opened(None, table(amount=1000, requests_per_minute=2))
    first = await granted(ledger, cost_micro=600)
    await ledger.set_limits(table(amount=700, requests_per_minute=3))
    assert await left(ledger) == 100
    assert await left(ledger, LimitName.REQUESTS) == 2
    await ledger.set_limits(table(amount=700, period_s=60, requests_per_minute=3))
    assert await left(ledger) == 700
    assert await ledger.settle(first, Demand(cost_micro=100))
    await ledger.set_limits(table(amount=700, requests_per_minute=3))
    assert await left(ledger) == 600
    await crash(ledger)


def test_a_scope_without_limits_or_twice_is_refused() -> None:
    ledger = LocalLedger(table())
    with pytest.raises(ValueError, match="no limits are set for tenant 'b'"):
        ledger.reserve([Scope(tenant="b")], Demand(), NOW)
    with pytest.raises(ValueError, match="twice"):
        ledger.reserve([SCOPE, SCOPE], Demand(), NOW)


def test_without_scopes_nothing_is_limited() -> None:
    ledger = LocalLedger(table())
    reservation = ledger.reserve([], Demand(input_tokens=10**9), NOW)
    assert isinstance(reservation, Reservation)
    assert ledger.settle(reservation, Demand(), 5, NOW)


def test_the_clock_is_the_time_of_day_and_never_goes_back() -> None:
    clock = steady_clock()
    first, second = clock(), clock()
    assert NOW // 2 < first <= second
