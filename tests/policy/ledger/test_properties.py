"""Random lives of gateways that share a ledger, against a log of everything: both ledgers, one suite."""

from __future__ import annotations

from typing import ClassVar

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

from airi.policy.ledger import Demand, LimitName, LimitTable, Refused, Reservation, Scope
from tests.policy.ledger.drivers import Driver, LocalDriver, RedisDriver
from tests.policy.ledger.model import (
    EVERYTHING,
    OF_MODEL,
    OTHER,
    SECOND,
    TABLE,
    TIGHTER,
    WIDE,
    Entry,
    Model,
)
from tests.policy.redis_server import RedisServer

START = 1_790_000_000 * SECOND + 123_456
LEASE_US = 10 * SECOND
GATEWAYS = 3

scope_sets = st.sampled_from([EVERYTHING, (WIDE,), (WIDE, OF_MODEL), (OTHER,)])
demands = st.builds(
    Demand,
    requests=st.sampled_from([1, 1, 1, 0, 4]),
    input_tokens=st.integers(0, 260),
    output_tokens=st.integers(0, 260),
    cost_micro=st.integers(0, 700),
    parallel=st.sampled_from([1, 1, 1, 0]),
)
huge = st.sampled_from(
    [Demand(input_tokens=2000), Demand(cost_micro=7000), Demand(requests=10, output_tokens=401)]
)
steps = st.one_of(
    st.integers(0, 2 * SECOND),
    st.sampled_from([1, SECOND - 1, SECOND, LEASE_US - 1, LEASE_US, 59 * SECOND, 60 * SECOND, 61 * SECOND]),
    st.integers(0, 130 * SECOND),
)
gateways = st.integers(0, GATEWAYS - 1)


class LedgerMachine(RuleBasedStateMachine):
    """Gateways reserve, settle, renew, stall and crash; the server's clock runs, and sometimes steps back."""

    held = Bundle("held")
    make_driver: ClassVar[staticmethod[[], Driver]]

    def __init__(self) -> None:
        super().__init__()
        self.driver = type(self).make_driver()
        self.model = Model(TABLE, LEASE_US, by_tenant=self.driver.clock_per_tenant)
        self.clock = START
        self.pass_time(0)

    def teardown(self) -> None:
        try:
            self.end_everything()
        finally:
            self.driver.close()

    def pass_time(self, us: int) -> None:
        self.clock += us
        self.driver.set_time(self.clock)

    @rule(us=steps)
    def time_passes(self, us: int) -> None:
        self.pass_time(us)

    @rule(us=st.integers(1, 70 * SECOND))
    def the_clock_steps_back(self, us: int) -> None:
        """As after a failover to a server whose clock is behind."""
        self.pass_time(-us)

    @rule(table=st.sampled_from([TABLE, TIGHTER]))
    def limits_are_reloaded(self, table: LimitTable) -> None:
        self.model.table = table
        self.driver.set_limits(table)

    @rule(
        target=held,
        gateway=gateways,
        scopes=scope_sets,
        demand=st.one_of(demands, demands, demands, huge),
        come_back_early=st.none() | st.integers(0, 1),
    )
    def reserve(self, gateway: int, scopes: tuple[Scope, ...], demand: Demand, come_back_early: int | None):  # type: ignore[no-untyped-def]
        """And, sometimes, comes back when it was told to, or a microsecond before."""
        outcome = self.try_to_reserve(gateway, scopes, demand)
        if come_back_early is not None and isinstance(outcome, Refused) and not outcome.never_fits:
            self.pass_time(outcome.at + (outcome.retry_after_us or 0) - come_back_early - self.clock)
            outcome = self.try_to_reserve(gateway, scopes, demand)
            assert isinstance(outcome, Refused) == (come_back_early == 1)
        if isinstance(outcome, Refused):
            return multiple()
        return (gateway, outcome, self.model.log[-1])

    def try_to_reserve(
        self, gateway: int, scopes: tuple[Scope, ...], demand: Demand
    ) -> Reservation | Refused:
        now = self.model.see(scopes, self.clock)
        full = self.model.full(scopes, demand, now)
        outcome = self.driver.reserve(gateway, scopes, demand)
        assert outcome.at == now
        if isinstance(outcome, Refused):
            assert (outcome.scope, outcome.name) in full
            self.check_refusal(outcome, scopes, demand)
        else:
            assert not full
            self.model.log.append(Entry(outcome.id, scopes, demand, now, now + LEASE_US, charged=demand))
            assert outcome.remaining_limits == self.driver.remaining(gateway, scopes)
        return outcome

    def check_refusal(self, refused: Refused, scopes: tuple[Scope, ...], demand: Demand) -> None:
        limit = self.model.table[refused.scope].value(refused.name)
        assert refused.limit == limit
        assert refused.remaining == max(0, limit - self.model.used(refused.scope, refused.name, refused.at))
        fits = self.model.first_fit(scopes, demand)
        assert refused.never_fits == (fits is None)
        if fits is not None:
            assert refused.retry_after_us == fits - refused.at

    @rule(item=consumes(held), share=st.integers(0, 4), device_us=st.sampled_from([0, 0, 150, -60]))
    def settle(self, item, share: int, device_us: int) -> None:  # type: ignore[no-untyped-def]
        gateway, reservation, entry = item
        demand = entry.demand
        used = Demand(
            requests=min(demand.requests, share),
            input_tokens=demand.input_tokens * share // 4,
            output_tokens=demand.output_tokens * share // 4,
            cost_micro=demand.cost_micro * share // 4,
            parallel=demand.parallel,
        )
        now = self.model.see(entry.scopes, self.clock)
        live = entry.expires > now
        assert self.driver.settle(gateway, reservation, used, device_us) == live
        if live:
            entry.charged, entry.settled = used, True
        self.model.device.append((entry.scopes, now, device_us))
        nothing = Demand(requests=0, parallel=0)
        assert not self.driver.settle(gateway, reservation, nothing, 0), "a second settle gives nothing back"

    @rule(item=held, device_us=st.integers(-200, 400))
    def a_step_of_a_device(self, item, device_us: int) -> None:  # type: ignore[no-untyped-def]
        gateway, reservation, entry = item
        budgets = [
            (scope, budget) for scope in entry.scopes if (budget := self.model.table[scope].device_seconds)
        ]
        # Redis is not asked, and sees no time, where nothing has a budget.
        asked = budgets or not self.driver.clock_per_tenant
        now = self.model.see(entry.scopes, self.clock) if asked else self.model.now(entry.scopes)
        self.model.device.append((entry.scopes, now, device_us))
        used_up = [s for s, b in budgets if self.model.used(s, LimitName.DEVICE, now) >= b.amount_micro]
        over = self.driver.charge_device(gateway, reservation, device_us)
        assert ([] if over is None else [over.scope]) == used_up[:1]
        if over is not None:
            assert over in self.driver.remaining(gateway, entry.scopes)

    @rule(item=consumes(held))
    def a_request_is_never_settled(self, item) -> None:  # type: ignore[no-untyped-def]
        """Its gateway crashed, or forgot it: nobody renews it any more."""

    @rule(items=st.lists(held, max_size=6, unique_by=lambda item: item[1].id))
    def renew(self, items) -> None:  # type: ignore[no-untyped-def]
        """A gateway that has not renewed for long learns which leases it has lost."""
        for gateway, reservation, entry in items:
            now = self.model.see(entry.scopes, self.clock)
            lost = self.driver.renew(gateway, [reservation])
            assert lost == ([reservation] if entry.expires <= now else [])
            if not lost:
                entry.expires = now + LEASE_US

    @rule(item=consumes(held), slots=st.sampled_from([59, 60, 61]), share=st.integers(0, 4))
    def a_request_runs_for_about_a_minute(self, item, slots: int, share: int) -> None:  # type: ignore[no-untyped-def]
        """With its lease renewed, and ends as its second is about to leave the window, or a period has ended."""
        gateway, _, entry = item
        end = (entry.at // SECOND + slots) * SECOND
        while self.clock < end:
            self.pass_time(min(LEASE_US - 1, end - self.clock))
            self.renew([item])
        self.what_remains_is_what_the_log_says(gateway, entry.scopes)
        self.settle(item, share, 0)
        self.what_remains_is_what_the_log_says(gateway, entry.scopes)

    @invariant()
    def nothing_is_over(self) -> None:
        """Where limits were lowered meanwhile, over those that were."""
        self.model.check(TABLE)

    @invariant()
    def the_ledger_is_sound(self) -> None:
        self.driver.check()

    @rule(gateway=gateways, scopes=scope_sets)
    def what_remains_is_what_the_log_says(self, gateway: int, scopes: tuple[Scope, ...]) -> None:
        now = self.model.see(scopes, self.clock)
        for one in self.driver.remaining(gateway, scopes):
            assert one.remaining == max(0, one.limit - self.model.used(one.scope, one.name, now)), one

    def end_everything(self) -> None:
        """After all leases, windows and periods nothing is held but what was spent for good."""
        self.clock = max(self.clock, *self.model.seen.values(), 0)
        self.pass_time(400 * SECOND)
        for scopes in (EVERYTHING, (OTHER,)):
            now = self.model.see(scopes, self.clock)
            for one in self.driver.remaining(0, scopes):
                for_good = one.scope == OTHER and one.name is LimitName.BUDGET
                spent = self.model.used(one.scope, one.name, now) if for_good else 0
                assert one.remaining == max(0, one.limit - spent), one


def run_machine(make_driver, examples: int) -> None:  # type: ignore[no-untyped-def]
    class Machine(LedgerMachine):
        pass

    Machine.make_driver = staticmethod(make_driver)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_in_process_ledger_is_what_a_log_of_everything_says() -> None:
    run_machine(lambda: LocalDriver(TABLE, LEASE_US), 300)


def test_the_redis_ledger_is_what_a_log_of_everything_says(redis_server: RedisServer) -> None:
    run_machine(lambda: RedisDriver(TABLE, LEASE_US, redis_server.url, GATEWAYS), 100)
