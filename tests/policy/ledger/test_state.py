"""Budgets of the in-process ledger in a real state."""

from __future__ import annotations

from pathlib import Path

import pytest

from airi.errors import LedgerUnavailableError
from airi.policy.ledger import (
    Budget,
    BudgetRecord,
    Demand,
    LimitName,
    Limits,
    LimitTable,
    ProcessLedger,
    Reservation,
    Scope,
)
from airi.policy.ledger.state import StateBudgets
from airi.state import Budget as Spent
from airi.state import Store, open_store

SCOPES = (Scope(tenant="a"), Scope(tenant="a", model="m/x"), Scope(tenant="a", priority_class="*"))
LIMITS = Limits(
    budget=Budget(amount_micro=1_280_000, period_s=86_400), device_seconds=Budget(amount_micro=10_000)
)
TABLE = LimitTable(dict.fromkeys(SCOPES, LIMITS))


async def left(ledger: ProcessLedger) -> list[int]:
    return [one.remaining for one in await ledger.remaining(SCOPES)]


async def started(store: Store) -> ProcessLedger:
    ledger = ProcessLedger(TABLE, store=StateBudgets(store))
    await ledger.open()
    return ledger


async def test_budgets_survive_an_orderly_end_and_a_crash(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    async with await open_store(url) as store:
        ledger = await started(store)
        outcome = await ledger.reserve(SCOPES, Demand(cost_micro=5000))
        assert isinstance(outcome, Reservation)
        assert await ledger.settle(outcome, Demand(cost_micro=4000), 70)
        await ledger.close()
    async with await open_store(url) as store:
        ledger = await started(store)
        assert await left(ledger) == [1_276_000, 9930] * 3
        for _ in range(3):
            outcome = await ledger.reserve(SCOPES[:1], Demand(cost_micro=6000))
            assert isinstance(outcome, Reservation)
        await ledger._leases.stop()  # a crash: nothing more is saved
    async with await open_store(url) as store:
        ledger = await started(store)
        money, *others = await left(ledger)
        assert 1_276_000 - 18_000 - 10_000 <= money <= 1_276_000 - 18_000
        assert others == [9930, 1_276_000, 9930, 1_276_000, 9930]
        await ledger.close()


async def test_two_that_count_for_themselves_do_not_share_a_state(state_url: str) -> None:
    """Else each would allow all of a limit, whatever it is of."""
    unpriced = LimitTable({SCOPES[0]: Limits(requests_per_minute=1)})
    says = r"^limits cannot be counted: state .* is used by another server; several share limits by"
    async with await open_store(state_url) as first, await open_store(state_url) as second:
        ledger = ProcessLedger(unpriced, store=StateBudgets(first))
        await ledger.open()
        other = ProcessLedger(LimitTable({}), store=StateBudgets(second))
        await other.open()  # which has nothing to share
        for table in (TABLE, unpriced):
            with pytest.raises(LedgerUnavailableError, match=says):
                await other.set_limits(table)
            with pytest.raises(LedgerUnavailableError, match=says):
                await ProcessLedger(table, store=StateBudgets(second)).open()
        await ledger.close()
        await first.close()
        await other.set_limits(TABLE)
        assert await left(other) == [1_280_000, 10_000] * 3
        await other.close()


async def test_of_past_periods_only_the_last_is_kept(state_url: str) -> None:
    hour = Limits(
        budget=Budget(amount_micro=100, period_s=3600), device_seconds=Budget(amount_micro=100, period_s=60)
    )
    table, now = LimitTable({SCOPES[0]: hour, SCOPES[1]: LIMITS}), 1_790_000_000_000_000

    def clock() -> int:
        return now

    async def rows(store: Store) -> list[int]:
        found = await store._read(
            ("SELECT scope, COUNT(*) FROM airi_budgets GROUP BY scope ORDER BY scope", ())
        )
        return [int(count) for _, count in found[0]]

    async with await open_store(state_url) as store:
        for _ in range(3):
            ledger = ProcessLedger(table, store=StateBudgets(store), clock=clock)
            await ledger.open()
            for _ in range(3):
                outcome = await ledger.reserve(SCOPES[:2], Demand(cost_micro=10))
                assert isinstance(outcome, Reservation)
                await ledger.settle(outcome, Demand(cost_micro=10), 10)
                now += 3_600_000_000
            await ledger._leases.stop()  # a crash
            assert max(await rows(store)) == 2
        # A clock that is behind finds what was spent in the period that it is in.
        now -= 2 * 3_600_000_000
        behind = ProcessLedger(table, store=StateBudgets(store), clock=clock)
        await behind.open()
        assert (await behind.remaining(SCOPES[:1]))[0].remaining <= 90
        await behind.close()
        assert max(await rows(store)) == 2


async def test_a_write_that_failed_is_read_again_before_the_next(tmp_path: Path) -> None:
    async with await open_store(f"sqlite:///{tmp_path}/state.db") as store:
        budgets, really = StateBudgets(store), store.spend
        record = BudgetRecord(
            scope=SCOPES[0], name=LimitName.BUDGET, period_s=60, period_index=7, spent_micro=500
        )

        async def spend_and_fail(charges: object) -> list[Spent]:
            await really(charges)  # type: ignore[arg-type]
            raise OSError("the answer was lost")

        store.spend = spend_and_fail  # type: ignore[method-assign]
        with pytest.raises(OSError, match="answer was lost"):
            await budgets.save_budgets([record])
        store.spend = really  # type: ignore[method-assign]
        await budgets.save_budgets([record])
        [loaded] = await StateBudgets(store).load_budgets([record])
        assert loaded.spent_micro == 500


async def test_a_state_that_is_closed_admits_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/state.db")
    ledger = await started(store)
    await store.close()
    for _ in range(2):
        with pytest.raises(LedgerUnavailableError):
            await ledger.reserve(SCOPES, Demand(cost_micro=5))
    [record] = caplog.records
    assert record.getMessage().startswith(
        "calls that cost are refused: budgets cannot be kept: state sqlite:"
    )
    await ledger._leases.stop()
