"""What a ledger should do, told naively: a log of everything, and sums over it."""

from __future__ import annotations

from dataclasses import dataclass

from airi.policy.ledger import Budget, Demand, LimitName, Limits, LimitTable, Scope

SECOND = 1_000_000
MINUTE = 60 * SECOND


@dataclass
class Entry:
    """One reservation that was granted."""

    id: str
    scopes: tuple[Scope, ...]
    demand: Demand
    at: int
    expires: int
    charged: Demand
    settled: bool = False


class Model:
    """The log, and what follows from it. Time is the latest ever seen, by all or (`by_tenant`) by each tenant."""

    def __init__(self, table: LimitTable, lease_us: int, *, by_tenant: bool) -> None:
        self.by_tenant = by_tenant
        self.table = table
        self.lease_us = lease_us
        self.log: list[Entry] = []
        self.device: list[tuple[tuple[Scope, ...], int, int]] = []
        self.seen: dict[str, int] = {}

    def now(self, scopes: tuple[Scope, ...]) -> int:
        """The latest time seen."""
        return self.seen.get(scopes[0].tenant if self.by_tenant else "", 0)

    def see(self, scopes: tuple[Scope, ...], clock: int) -> int:
        """The time that counts for a call on these scopes at `clock`."""
        self.seen[scopes[0].tenant if self.by_tenant else ""] = now = max(self.now(scopes), clock)
        return now

    def entries(self, scope: Scope) -> list[Entry]:
        return [entry for entry in self.log if scope in entry.scopes]

    def used(self, scope: Scope, name: LimitName, at: int) -> int:
        """What counts against a limit at a moment, if nothing happens until then."""
        limits = self.table[scope]
        entries = self.entries(scope)
        if name is LimitName.PARALLEL:
            return sum(e.demand.parallel for e in entries if not e.settled and e.expires > at)
        if name is LimitName.BUDGET:
            period = period_of(limits.budget, at)
            return sum(e.charged.cost_micro for e in entries if period_of(limits.budget, e.at) == period)
        if name is LimitName.DEVICE:
            period = period_of(limits.device_seconds, at)
            total = 0
            for scopes, when, us in self.device:
                if scope in scopes and period_of(limits.device_seconds, when) == period:
                    total = max(0, total + us)
            return total
        first = at // SECOND - 60
        return sum(amount(e.charged, name) for e in entries if e.at // SECOND >= first)

    def room(self, scopes: tuple[Scope, ...], demand: Demand, at: int) -> bool:
        """Whether a demand fits at a moment, if nothing happens until then."""
        return not self.full(scopes, demand, at)

    def full(self, scopes: tuple[Scope, ...], demand: Demand, at: int) -> set[tuple[Scope, LimitName]]:
        """The limits that keep it out."""
        found = set()
        for scope in scopes:
            for name in LimitName:
                limit = self.table[scope].value(name)
                if limit is not None and self.used(scope, name, at) + amount(demand, name) > limit:
                    found.add((scope, name))
        return found

    def first_fit(self, scopes: tuple[Scope, ...], demand: Demand) -> int | None:
        """The first moment from now at which it fits; None: never. Looks at every moment when anything ends."""
        now = self.now(scopes)
        moments = {now}
        for scope in scopes:
            limits = self.table[scope]
            for entry in self.entries(scope):
                moments |= {(entry.at // SECOND + 61) * SECOND, entry.expires}
            for budget in (limits.budget, limits.device_seconds):
                if budget is not None and budget.period_s is not None:
                    length = budget.period_s * SECOND
                    moments.add(now - (now - 4 * 24 * 60 * MINUTE) % length + length)
        fits = (at for at in sorted(moments) if at >= now and self.room(scopes, demand, at))
        return next(fits, None)

    def check(self, loosest: LimitTable) -> None:
        """What must never be, whatever a ledger thinks: by the log's own times, not by slots."""
        for scope, limits in loosest.items():
            entries = self.entries(scope)
            for name in LimitName:
                limit = limits.value(name)
                if limit is None or name is LimitName.DEVICE:
                    continue
                if name is LimitName.PARALLEL or name is LimitName.BUDGET:
                    assert self.used(scope, name, self.now((scope,))) <= limit, (scope, name)
                    continue
                for start in {entry.at for entry in entries}:
                    inside = [e for e in entries if start <= e.at <= start + MINUTE]
                    assert sum(amount(e.charged, name) for e in inside) <= limit, (scope, name, start)


def period_of(budget: Budget | None, at: int) -> int | None:
    if budget is None or budget.period_s is None:
        return None
    return (at - 4 * 24 * 60 * MINUTE) // (budget.period_s * SECOND)


def amount(demand: Demand, name: LimitName) -> int:
    return {
        LimitName.REQUESTS: demand.requests,
        LimitName.TOKENS: demand.input_tokens + demand.output_tokens,
        LimitName.INPUT_TOKENS: demand.input_tokens,
        LimitName.OUTPUT_TOKENS: demand.output_tokens,
        LimitName.PARALLEL: demand.parallel,
        LimitName.BUDGET: demand.cost_micro,
        LimitName.DEVICE: 1,
    }[name]


TENANT, MODEL, CLASS = "a", "m", "c"
WIDE = Scope(tenant=TENANT)
OF_MODEL = Scope(tenant=TENANT, model=MODEL)
NARROW = Scope(tenant=TENANT, model=MODEL, priority_class=CLASS)
OTHER = Scope(tenant="b {x}:*")
EVERYTHING = (WIDE, OF_MODEL, NARROW)

TABLE = LimitTable(
    {
        WIDE: Limits(
            requests_per_minute=9,
            tokens_per_minute=1000,
            max_parallel_requests=4,
            budget=Budget(amount_micro=2000, period_s=300),
        ),
        OF_MODEL: Limits(
            input_tokens_per_minute=500,
            max_parallel_requests=3,
            device_seconds=Budget(amount_micro=1000, period_s=200),
        ),
        NARROW: Limits(output_tokens_per_minute=400, budget=Budget(amount_micro=900, period_s=120)),
        OTHER: Limits(requests_per_minute=12, max_parallel_requests=4, budget=Budget(amount_micro=6000)),
    }
)

TIGHTER = LimitTable(
    {
        WIDE: Limits(
            requests_per_minute=5,
            tokens_per_minute=400,
            max_parallel_requests=1,
            budget=Budget(amount_micro=1200, period_s=300),
        ),
        OF_MODEL: Limits(
            input_tokens_per_minute=200,
            max_parallel_requests=0,
            device_seconds=Budget(amount_micro=300, period_s=200),
        ),
        NARROW: Limits(output_tokens_per_minute=100, budget=Budget(amount_micro=300, period_s=120)),
        OTHER: Limits(requests_per_minute=10, max_parallel_requests=1, budget=Budget(amount_micro=4000)),
    }
)
