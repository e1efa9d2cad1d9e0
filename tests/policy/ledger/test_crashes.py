"""Lives that end at any moment: of a process whose ledger saves budgets, of gateways and of their server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from airi.errors import LedgerUnavailableError, StateError
from airi.policy.ledger import (
    Budget,
    Demand,
    LimitName,
    Limits,
    LimitTable,
    ProcessLedger,
    Refused,
    Reservation,
    Scope,
)
from airi.policy.ledger.limits import PERIOD_ANCHOR_S
from airi.policy.ledger.state import StateBudgets
from airi.state import Budget as Spent
from airi.state import Charge
from tests.policy.ledger.drivers import RedisDriver
from tests.policy.ledger.model import MINUTE, SECOND, TABLE, Entry, amount
from tests.policy.ledger.test_properties import GATEWAYS, LEASE_US, LedgerMachine, demands, scope_sets
from tests.policy.redis_server import RedisServer, running_redis

T = TypeVar("T")

START = 1_790_000_000 * SECOND + 123_456
PERIOD_S = 300
WIDE, OF_MODEL = Scope(tenant="a"), Scope(tenant="a", model="m")
LIMITS = LimitTable(
    {
        WIDE: Limits(
            requests_per_minute=6,
            tokens_per_minute=1000,
            max_parallel_requests=3,
            budget=Budget(amount_micro=2000, period_s=PERIOD_S),
        ),
        OF_MODEL: Limits(
            input_tokens_per_minute=500,
            budget=Budget(amount_micro=5000),
            device_seconds=Budget(amount_micro=1000, period_s=PERIOD_S),
        ),
    }
)
SCOPES = WIDE, OF_MODEL
BUDGETS = (WIDE, LimitName.BUDGET), (OF_MODEL, LimitName.BUDGET), (OF_MODEL, LimitName.DEVICE)
SETTINGS = settings(stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


def row_of(scope: Scope, name: LimitName) -> str:
    """As a store calls what is spent of a budget of this period."""
    model = "*" if scope.model is None else scope.model
    return f"{scope.tenant}/{model}/*/{name}/{PERIOD_S}"


class Crash(BaseException):
    """The process ends here: nobody sees what it raises."""


class Disk:
    """A `Store` that outlives its processes. The next write fails in the way that was asked for."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], Spent] = {}
        self.next_fault: str | None = None

    async def own_budgets(self) -> None:
        pass

    async def spend(self, charges: Iterable[Charge]) -> list[Spent]:
        fault, self.next_fault = self.next_fault, None
        if fault == "full":
            raise StateError("the disk is full")
        if fault == "crash before":
            raise Crash
        found = []
        for charge in charges:
            spent = await self.budget(charge.scope, charge.period_start)
            found.append(
                Spent(
                    scope=charge.scope,
                    period_start=charge.period_start,
                    spent_micro=spent.spent_micro + charge.micro,
                    device_us=spent.device_us + charge.device_us,
                )
            )
            self.rows[charge.scope, charge.period_start] = found[-1]
        if fault == "answer lost":
            raise StateError("the server does not answer in time")
        if fault == "crash after":
            raise Crash
        return found

    async def budget(self, scope: str, period_start: int) -> Spent:
        none = Spent(scope=scope, period_start=period_start, spent_micro=0, device_us=0)
        return self.rows.get((scope, period_start), none)

    async def forget_budgets(self, places: Iterable[tuple[str, int]]) -> None:
        for scope, before in places:
            self.rows = {at: row for at, row in self.rows.items() if at[0] != scope or at[1] >= before}


@dataclass
class Granted:
    """What a client was told that it may use, and has used at most."""

    life: int
    at: int
    expires: int
    charged: Demand
    periods: dict[Scope, int]
    runs: bool = True


class ProcessLives(RuleBasedStateMachine):
    """One process after another over one disk."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.disk = Disk()
        self.clock = self.highest = START
        self.life = 0
        self.log: list[Granted] = []
        self.device: list[tuple[int, int]] = []
        self.begin()

    def begin(self) -> None:
        self.life += 1
        store: Any = self.disk
        self.ledger = ProcessLedger(
            LIMITS, store=StateBudgets(store), lease_s=LEASE_US / SECOND, clock=lambda: self.clock
        )
        self.latest = 0
        # A period that has begun does not end by a clock that is behind.
        spent = [at for at, row in self.disk.rows.items() if row.spent_micro or row.device_us]
        self.begun = {
            of: max((start for row, start in spent if row == row_of(*of)), default=0) for of in BUDGETS
        }
        self.run(self.ledger.set_limits(LIMITS))

    def teardown(self) -> None:
        self.runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self.latest = max(self.latest, self.clock)
        self.highest = max(self.highest, self.clock)
        return self.runner.run(work)

    def attempt(self, work: Coroutine[Any, Any, T]) -> T | None:
        """None where the ledger could not, or its process ended meanwhile."""
        try:
            return self.run(work)
        except LedgerUnavailableError:
            return None
        except Crash:
            self.begin()
            return None

    @rule(us=st.sampled_from([0, 1, SECOND, 7 * SECOND, 61 * SECOND, PERIOD_S * SECOND]))
    def time_passes(self, us: int) -> None:
        self.clock += us

    @rule(fault=st.sampled_from(["full", "answer lost", "crash before", "crash after"]))
    def the_next_write_fails(self, fault: str) -> None:
        self.disk.next_fault = fault

    @rule(skew_s=st.integers(-PERIOD_S, PERIOD_S))
    def it_crashes(self, skew_s: int) -> None:
        """And begins again, maybe on a machine whose clock is behind or ahead."""
        self.clock = max(self.clock + skew_s * SECOND, self.highest - PERIOD_S * SECOND)
        self.begin()

    @rule()
    def it_ends_in_order(self) -> None:
        before, life = self.run(self.ledger.remaining(SCOPES)), self.life
        closed = self.attempt(self.close())
        if life == self.life:
            self.begin()
        if not closed:
            return
        money = LimitName.BUDGET, LimitName.DEVICE
        after = self.run(self.ledger.remaining(SCOPES))
        assert [one for one in after if one.name in money] == [one for one in before if one.name in money]

    async def close(self) -> bool:
        await self.ledger.close()
        return True

    @rule(target=held, demand=demands)
    def reserve(self, demand: Demand):  # type: ignore[no-untyped-def]
        life = self.life
        outcome = self.attempt(self.ledger.reserve(SCOPES, demand))
        if not isinstance(outcome, Reservation) or life != self.life:
            return multiple()
        periods = {WIDE: self.period(WIDE, LimitName.BUDGET), OF_MODEL: 0}
        self.log.append(Granted(life, outcome.at, outcome.at + LEASE_US, demand, periods))
        return outcome, self.log[-1]

    @rule(item=consumes(held), share=st.integers(0, 4))
    def settle(self, item, share: int) -> None:  # type: ignore[no-untyped-def]
        """What was not, for its process had ended, stays as it was reserved."""
        reservation, granted = item
        if granted.life != self.life:
            return
        demand = granted.charged
        used = Demand(
            requests=demand.requests,
            input_tokens=demand.input_tokens * share // 4,
            output_tokens=demand.output_tokens * share // 4,
            cost_micro=demand.cost_micro * share // 4,
            parallel=demand.parallel,
        )
        live = granted.expires > max(self.latest, self.clock)
        granted.runs = False
        assert self.attempt(self.ledger.settle(reservation, used)) == live
        if live:
            granted.charged = used

    @rule(item=held, device_us=st.integers(1, 300))
    def a_step_of_a_device(self, item, device_us: int) -> None:  # type: ignore[no-untyped-def]
        """Where it is told that it may go on, that is saved."""
        reservation, granted = item
        life = self.life
        if granted.life != life:
            return
        try:
            over = self.run(self.ledger.charge_device(reservation, device_us))
        except LedgerUnavailableError:
            return
        except Crash:
            self.begin()
            return
        if over is None:
            self.device.append((self.period(OF_MODEL, LimitName.DEVICE), device_us))

    def period(self, scope: Scope, name: LimitName) -> int:
        """The start of the one that counts now, in seconds."""
        now = self.latest // SECOND
        return max(now - (now - PERIOD_ANCHOR_S) % PERIOD_S, self.begun[scope, name])

    def spent(self, scope: Scope, name: LimitName) -> int:
        """What was used or may be, of a budget in the period that counts now, by all lives."""
        if name is LimitName.DEVICE:
            return sum(us for period, us in self.device if period == self.period(scope, name))
        period = 0 if scope == OF_MODEL else self.period(scope, name)
        return sum(g.charged.cost_micro for g in self.log if g.periods[scope] == period)

    @invariant()
    def nothing_is_over_and_nothing_forgotten(self) -> None:
        for one in self.run(self.ledger.remaining(SCOPES)):
            if (one.scope, one.name) in BUDGETS:
                spent = self.spent(one.scope, one.name)
                assert spent <= one.limit, one
                assert one.remaining <= one.limit - spent, one

    @invariant()
    def no_life_is_over_in_any_minute(self) -> None:
        """Counts of minutes, and calls that run, end with the process."""
        mine = [granted for granted in self.log if granted.life == self.life]
        runs = sum(g.charged.parallel for g in mine if g.runs and g.expires > self.latest)
        assert runs <= (LIMITS[WIDE].max_parallel_requests or 0)
        for scope, name in (
            (WIDE, LimitName.REQUESTS),
            (WIDE, LimitName.TOKENS),
            (OF_MODEL, LimitName.INPUT_TOKENS),
        ):
            for start in {granted.at for granted in mine}:
                inside = [g.charged for g in mine if start <= g.at <= start + MINUTE]
                assert sum(amount(demand, name) for demand in inside) <= (LIMITS[scope].value(name) or 0)


def test_a_process_that_ends_at_any_moment_forgets_no_money() -> None:
    run_state_machine_as_test(ProcessLives, settings=settings(SETTINGS, max_examples=100))


VISIBLE = Demand(input_tokens=10, output_tokens=10, cost_micro=10)


class ServerLives(LedgerMachine):
    """Gateways and their server, which are killed and begin again: with all that was answered."""

    server: ClassVar[RedisServer]
    driver: RedisDriver

    @rule()
    def the_server_is_killed(self) -> None:
        self.begin_again([])

    @rule(gateway=st.integers(0, GATEWAYS - 1))
    def a_gateway_crashes(self, gateway: int) -> None:
        """What it held may still be settled, as by one that was only cut off."""
        self.driver.replace_gateway(gateway)

    @rule(gateway=st.integers(0, GATEWAYS - 1), scopes=scope_sets)
    def the_server_is_killed_while_it_reserves(self, gateway: int, scopes: tuple[Scope, ...]) -> None:
        """Whether that was counted or not, it is whole; nobody has it, so only its lease gives its place back."""
        now = self.model.see(scopes, self.clock)
        full = self.model.full(scopes, VISIBLE, now)
        [outcome] = self.begin_again([self.driver.ledgers[gateway].reserve(scopes, VISIBLE)])
        if isinstance(outcome, Refused):
            assert full
        elif not self.is_what_the_log_says(scopes):
            assert not full
            name = outcome.id if isinstance(outcome, Reservation) else "lost"
            self.model.log.append(Entry(name, scopes, VISIBLE, now, now + LEASE_US, charged=VISIBLE))
        assert self.is_what_the_log_says(scopes)

    @rule(item=consumes(LedgerMachine.held))
    def the_server_is_killed_while_it_settles(self, item) -> None:  # type: ignore[no-untyped-def]
        """A settlement whose answer was lost may be lost with it: what was reserved stays charged."""
        gateway, reservation, entry = item
        nothing = Demand(requests=0, parallel=0)
        now = self.model.see(entry.scopes, self.clock)
        live = entry.expires > now
        [held] = self.begin_again([self.driver.ledgers[gateway].settle(reservation, nothing)])
        if isinstance(held, bool):
            assert held == live
        if held is True or not self.is_what_the_log_says(entry.scopes):
            assert live
            entry.charged, entry.settled = nothing, True
        assert self.is_what_the_log_says(entry.scopes)

    def begin_again(self, work: Sequence[Coroutine[Any, Any, object]]) -> list[object]:
        return self.driver.killed_during(self.server, work)

    def is_what_the_log_says(self, scopes: tuple[Scope, ...]) -> bool:
        now = self.model.see(scopes, self.clock)
        return all(
            one.remaining == max(0, one.limit - self.model.used(one.scope, one.name, now))
            for one in self.driver.remaining(0, scopes)
        )


def test_a_server_that_is_killed_at_any_moment_forgets_nothing_that_it_answered(
    redis_installed: None,
) -> None:
    with running_redis("--appendonly", "yes", "--appendfsync", "always") as server:

        class Machine(ServerLives):
            pass

        Machine.server = server
        Machine.make_driver = staticmethod(lambda: RedisDriver(TABLE, LEASE_US, server.url, GATEWAYS))
        run_state_machine_as_test(Machine, settings=settings(SETTINGS, max_examples=15))
