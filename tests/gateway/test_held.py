"""Device time is charged one step ahead: what is used beyond a budget is at most a step of each call that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi.errors import LedgerUnavailableError
from airi.gateway.errors import ApiError
from airi.gateway.limits import Held, Limiter
from airi.policy.ledger import Budget, LimitName, Limits, LimitTable, ProcessLedger, Remaining, Scope

SCOPE = Scope(tenant="anyone")
CALL = "anyone", "m", "standard", (1, 1, 1)


class SlowLedger(ProcessLedger):
    """Answers charges when the test says so, as one over a network does."""

    def __init__(self, limits: LimitTable) -> None:
        super().__init__(limits)
        self.charges: list[tuple[int, asyncio.Future[None]]] = []

    async def charge_device(self, reservation: Any, device_us: int) -> Remaining | None:
        waiting = asyncio.get_running_loop().create_future()
        self.charges.append((device_us, waiting))
        await waiting
        return await super().charge_device(reservation, device_us)


def table(budget_us: int) -> LimitTable:
    return LimitTable({SCOPE: Limits(device_seconds=Budget(amount_micro=budget_us), requests_per_minute=500)})


async def held_of(
    ledger: ProcessLedger, limits: LimitTable, end: Callable[[Exception], object] = lambda _: None
) -> Held:
    held = await Limiter(ledger, limits, lambda *_: 0).reserve(*CALL, end)
    assert held is not None
    return held


async def spent(ledger: ProcessLedger) -> int:
    remaining = await ledger.remaining([SCOPE])
    return next(one.limit - one.remaining for one in remaining if one.name is LimitName.DEVICE)


async def settled_down() -> None:
    """All that can happen has."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_while_a_charge_is_under_way_goes_with_the_next() -> None:
    limits = table(10_000)
    ledger = SlowLedger(limits)
    await ledger.set_limits(limits)
    held = await held_of(ledger, limits)
    for device_us in (100, 120, 130):
        held.use_device(device_us, runs=True)
        await settled_down()
    assert [due for due, _ in ledger.charges] == [200], "what was used, and as much ahead"
    ledger.charges[0][1].set_result(None)
    await settled_down()
    assert [due for due, _ in ledger.charges] == [200, 350 + 2 * 250 - 200]
    settling = asyncio.create_task(held.settle(1, 1, 1))
    held.use_device(40, runs=False)
    ledger.charges[1][1].set_result(None)
    await settled_down()
    assert [due for due, _ in ledger.charges[2:]] == [390 - 850]
    ledger.charges[2][1].set_result(None)
    await settling
    assert await spent(ledger) == 390


@given(
    told=st.lists(st.integers(0, 500), max_size=12),
    settled_after=st.integers(0, 12),
    pauses=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_in_the_end_what_was_told_is_charged(told: list[int], settled_after: int, pauses: list[bool]) -> None:
    async def run() -> int:
        limits = table(10**9)
        ledger = ProcessLedger(limits)
        await ledger.set_limits(limits)
        held = await held_of(ledger, limits)
        for index, device_us in enumerate(told):
            if index == settled_after:
                await held.settle(1, 1, 1)
            held.use_device(device_us, runs=True)
            if pauses[index]:
                await settled_down()
        held.use_device(7, runs=False)
        if settled_after >= len(told):
            await held.settle(0, 0, 0)
        await settled_down()
        return await spent(ledger)

    assert asyncio.run(run()) == sum(told) + 7


async def overshoot_of(budget_us: int, costs: Sequence[int]) -> int:
    """How far requests of these costs a step go beyond a budget, where each step is planned while one runs."""
    limits = table(budget_us)
    ledger = ProcessLedger(limits)
    await ledger.set_limits(limits)
    ended: set[int] = set()
    held = [
        await held_of(ledger, limits, lambda _, index=index: ended.add(index))  # type: ignore[misc]
        for index in range(len(costs))
    ]
    used, settled = 0, set[int]()
    runs, planned = set(range(len(held))), set(range(len(held)))
    while runs:
        for index in sorted(runs):
            used += costs[index]
            held[index].use_device(costs[index], runs=index in planned)
        await settled_down()
        for index in ended - settled:
            await held[index].settle(1, 1, 1)
        settled |= ended
        runs, planned = planned, planned - ended
    await settled_down()
    assert await spent(ledger) == min(used, budget_us)
    return used - budget_us


@given(budget_us=st.integers(1, 3000), costs=st.lists(st.integers(1, 100), min_size=1, max_size=8))
def test_what_is_used_beyond_a_budget_is_at_most_a_step_of_each_request(
    budget_us: int, costs: list[int]
) -> None:
    # Nothing tells what a first step will take: where it alone, with the next one, uses the budget up, it is two.
    steps = 1 if budget_us > 2 * sum(costs) else 2
    assert asyncio.run(overshoot_of(budget_us, costs)) <= steps * sum(costs)


async def test_a_call_that_has_ended_in_the_engine_is_not_ended_again() -> None:
    limits = table(100)
    ledger = ProcessLedger(limits)
    await ledger.set_limits(limits)
    errors = list[Exception]()
    held = await held_of(ledger, limits, errors.append)
    held.use_device(500, runs=False)
    await settled_down()
    assert errors == []


class AwayLedger(ProcessLedger):
    """Does not answer the first so many charges, as a Redis that is started again."""

    def __init__(self, limits: LimitTable, misses: int) -> None:
        super().__init__(limits)
        self.misses = misses

    def _miss(self) -> None:
        self.misses -= 1
        if self.misses >= 0:
            raise LedgerUnavailableError("no answer")

    async def charge_device(self, reservation: Any, device_us: int) -> Remaining | None:
        await asyncio.sleep(0)
        self._miss()
        return await super().charge_device(reservation, device_us)

    async def settle(self, reservation: Any, used: Any, device_us: int = 0) -> bool:
        await asyncio.sleep(0)
        self._miss()
        return await super().settle(reservation, used, device_us)


@pytest.mark.parametrize("misses", range(5))
async def test_what_was_not_charged_is_charged_at_the_next_chance_and_once(misses: int) -> None:
    limits = table(10_000)
    ledger, errors = AwayLedger(limits, misses), list[Exception]()
    await ledger.set_limits(limits)
    held = await held_of(ledger, limits, errors.append)
    for device_us in (100, 120, 130):
        held.use_device(device_us, runs=True)
        await settled_down()
    if misses == 4:
        with pytest.raises(LedgerUnavailableError):
            await held.settle(1, 1, 1)
        assert await spent(ledger) == 0
        held.use_device(0, runs=True)
        await settled_down()
        assert await spent(ledger) == 350 + 130, "what was told, and a step ahead"
    else:
        settling = asyncio.create_task(held.settle(1, 1, 1))
        held.use_device(0, runs=True)
        await settling
    held.use_device(40, runs=False)
    await settled_down()
    assert len(errors) == min(misses, 3)
    assert await spent(ledger) == 390


async def test_a_call_whose_limit_was_taken_away_runs_on() -> None:
    limits = table(100)
    ledger, errors = SlowLedger(limits), list[Exception]()
    await ledger.set_limits(limits)
    held = await held_of(ledger, limits, errors.append)
    held.use_device(500, runs=True)
    await settled_down()
    await ledger.set_limits(LimitTable({}))
    for due in range(2):
        ledger.charges[due][1].set_result(None)
        await settled_down()
        held.use_device(500, runs=True)
        await settled_down()
    assert errors == []


@pytest.mark.parametrize("error", [LedgerUnavailableError("no answer"), RuntimeError("a bug")])
async def test_a_call_whose_time_cannot_be_counted_ends(error: Exception) -> None:
    limits = table(1000)
    ledger = ProcessLedger(limits)
    await ledger.set_limits(limits)
    errors = list[Exception]()
    held = await held_of(ledger, limits, errors.append)

    async def fails(*_: Any) -> bool:
        raise error

    ledger.charge_device = fails  # type: ignore[assignment,method-assign]
    held.use_device(10, runs=True)
    await settled_down()
    assert errors == [error]


async def test_the_scope_that_is_used_up_is_named_with_when_to_come_back() -> None:
    limits = LimitTable({SCOPE: Limits(device_seconds=Budget(amount_micro=2_500_000, period_s=3600))})
    ledger = ProcessLedger(limits)
    await ledger.set_limits(limits)
    errors = list[Exception]()
    held = await held_of(ledger, limits, errors.append)
    held.use_device(2_000_000, runs=True)
    await settled_down()
    (error,) = errors
    assert isinstance(error, ApiError)
    assert (error.status, error.param, error.error_code) == (429, "max_device_seconds", "insufficient_quota")
    assert str(error).startswith("max_device_seconds of tenant 'anyone' is 2.5: used up; retry in")
    assert 0 < int(dict(error.headers)[b"retry-after"]) <= 3600
