"""The ledger of one process: reserve what a request may use, give back what it did not.

Exact: whatever 60 seconds one looks at, what was reserved in them and not given back is within the limit.
Use is counted where it was reserved, by seconds: a second's use leaves the window when the last
microsecond of it is more than 60 s ago, so up to a second late and never early.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from airi.policy.ledger.account import Account, Meter
from airi.policy.ledger.budgets import BudgetRecord
from airi.policy.ledger.limits import LIMIT_NAMES, MICRO, Demand, LimitName, Limits, LimitTable, Scope
from airi.policy.ledger.outcome import Refused, Remaining, Reservation, Usage, refusal, remaining_of, used_up

LEASE_US = 30 * MICRO


class _Hold(NamedTuple):
    """What one live reservation holds: per account the cell of its second and, with a budget, meter and period."""

    expires: int
    parts: list[tuple[Account, list[int], Meter | None, int]]


class LocalLedger:
    """Counts in memory. Never reads a clock, never waits, stores nothing itself.

    `now` is in microseconds since 1970 and should not go back; where it does, the latest one seen counts.
    Every call is O(scopes), amortised; a refusal is O(scopes x 61 + live reservations it waits for).

    Thread safety: none. One event loop calls it.
    Invariant: per scope, the cells of the last 61 seconds add up to its sums, and live reservations
    never exceed max_parallel_requests unless that was lowered under them.
    """

    def __init__(
        self,
        limits: LimitTable,
        *,
        lease_us: int = LEASE_US,
        durable: bool = False,
    ) -> None:
        """With `durable`, what budgets have spent must be saved: see `uncovered`."""
        self._lease_us = lease_us
        self._durable = durable
        self._now = 0
        self._serial = 0
        self._live: OrderedDict[str, _Hold] = OrderedDict()  # the first to expire comes first
        self._meters: dict[tuple[Scope, LimitName, int | None], Meter] = {}
        self._uncovered: set[Meter] = set()
        self._accounts: dict[Scope, Account] = {}
        self._plans: dict[tuple[Scope, ...], tuple[list[Account], tuple[Limits, ...]]] = {}
        self.set_limits(limits)

    def unknown(self, limits: LimitTable, now: int) -> tuple[BudgetRecord, ...]:
        """The budgets of `limits` that this ledger has no meter of yet, with nothing spent in the period of now."""
        found = []
        for scope, scope_limits in limits.items():
            budgets = (LimitName.BUDGET, scope_limits.budget), (LimitName.DEVICE, scope_limits.device_seconds)
            for name, budget in budgets:
                if budget is not None and (scope, name, budget.period_s) not in self._meters:
                    found.append(
                        BudgetRecord(
                            scope=scope,
                            name=name,
                            period_s=budget.period_s,
                            period_index=budget.period_index(now),
                            spent_micro=0,
                        )
                    )
        return tuple(found)

    def add_records(self, records: Iterable[BudgetRecord]) -> None:
        """What was saved of budgets that this ledger has no meter of yet."""
        for record in records:
            key = record.scope, record.name, record.period_s
            if key not in self._meters:
                self._meters[key] = Meter(record, durable=self._durable)

    def set_limits(self, limits: LimitTable) -> None:
        """Replaces all limits at once. Scopes keep their counts, also those that are not limited any more: what was
        reserved in them still ends, and they may come back. A budget of another period starts at 0.
        """
        for scope, scope_limits in limits.items():
            account = self._accounts.setdefault(scope, Account(scope))
            account.set_limits(scope_limits, self._meters, durable=self._durable)
        self._limits = limits
        self._plans.clear()

    def reserve(self, scopes: Sequence[Scope], demand: Demand, now: int) -> Reservation | Refused:
        """Charges `demand` to all scopes, or to none. Raises ValueError for a scope that has no limits."""
        now = self._advance(now)
        scopes = tuple(scopes)
        accounts, limits = self._plans.get(scopes) or self._plan(scopes)
        slot = now // MICRO
        requests, inputs, outputs = demand.requests, demand.input_tokens, demand.output_tokens
        cost, parallel = demand.cost_micro, demand.parallel
        for account in accounts:
            account.move_to(slot, now)
            if not account.fits(requests, inputs, outputs, cost, parallel):
                return self._refuse(scopes, accounts, limits, demand, now)
        self._serial += 1
        name = str(self._serial)
        parts = []
        for account in accounts:
            parts.append(account.charge(slot, requests, inputs, outputs, cost))
            if parallel:
                account.leases[name] = None
            meter = account.money
            if meter is not None and meter.spent > meter.covered:
                self._uncovered.add(meter)
        self._live[name] = _Hold(now + self._lease_us, parts)
        return Reservation(
            id=name,
            scopes=scopes,
            demand=demand,
            at=now,
            limits=limits,
            usages=tuple([account.usage() for account in accounts]),
        )

    def settle(self, reservation: Reservation, used: Demand, device_us: int, now: int) -> bool:
        """Ends a reservation: what `used` leaves over is given back, `device_us` more is charged.

        False where its lease had ended or it was settled before: nothing is given back then, so what it had
        reserved stays charged. Raises ValueError where more was used than reserved.
        """
        requests, inputs, outputs, cost = reservation.demand.unused(used)
        self._advance(now)
        if device_us:
            self._charge_device(reservation.scopes, device_us)
        hold = self._live.pop(reservation.id, None)
        if hold is None:
            return False
        for account, cell, meter, index in hold.parts:
            account.leases.pop(reservation.id, None)
            account.give_back(cell, requests, inputs, outputs)
            if meter is not None and meter.index == index:
                meter.spent -= cost
        return True

    def charge_device(self, reservation: Reservation, device_us: int, now: int) -> Remaining | None:
        """Charges device time, or gives back, below 0, what was charged ahead of its use.

        Returns the limit of a scope that has none left: the request is to end. None while all have some.
        """
        self._advance(now)
        return self._charge_device(reservation.scopes, device_us)

    def renew(self, reservations: Iterable[Reservation], now: int) -> list[Reservation]:
        """Lets live reservations live for a lease from now. Returns those that were live no more."""
        expires = self._advance(now) + self._lease_us
        lost = []
        for reservation in reservations:
            hold = self._live.pop(reservation.id, None)
            if hold is None:
                lost.append(reservation)
                continue
            self._live[reservation.id] = hold._replace(expires=expires)
            for account, *_ in hold.parts:
                if reservation.id in account.leases:
                    account.leases[reservation.id] = account.leases.pop(reservation.id)
        return lost

    def remaining(self, scopes: Sequence[Scope], now: int) -> tuple[Remaining, ...]:
        """What every limit of these scopes has left."""
        now = self._advance(now)
        accounts, limits = self._plan(tuple(scopes))
        return remaining_of(tuple(scopes), limits, self._usages(accounts, now), now)

    @property
    def needs_saving(self) -> bool:
        """Whether `uncovered` has any."""
        return bool(self._uncovered)

    def uncovered(self) -> tuple[BudgetRecord, ...]:
        """Records to be saved before what was reserved may be used; none where saved ones already cover it.

        Each says some more than is spent, so that not every request has to wait for a store. After a crash that
        much counts as spent: never less than was reserved.
        """
        return tuple(meter.record(meter.bound()) for meter in self._uncovered if meter.spent > meter.covered)

    def mark_covered(self, records: Iterable[BudgetRecord]) -> None:
        """These are saved."""
        for record in records:
            meter = self._meters[record.scope, record.name, record.period_s]
            if meter.index == record.period_index:
                meter.covered = record.spent_micro
            if meter.spent <= meter.covered:
                self._uncovered.discard(meter)

    def exact_records(self, now: int) -> tuple[BudgetRecord, ...]:
        """What is spent and reserved of every budget, without anything on top: to be saved before an orderly end."""
        now = self._advance(now)
        for meter in self._meters.values():
            meter.roll(now)
        return tuple(meter.record(meter.spent) for meter in self._meters.values())

    def _advance(self, now: int) -> int:
        """Ends leases. Returns the time that counts."""
        if now < self._now:
            now = self._now
        self._now = now
        live = self._live
        while live and next(iter(live.values())).expires <= now:
            name, hold = live.popitem(last=False)
            for account, *_ in hold.parts:
                account.leases.pop(name, None)
        return now

    def _plan(self, scopes: tuple[Scope, ...]) -> tuple[list[Account], tuple[Limits, ...]]:
        missing = [scope for scope in scopes if scope not in self._limits]
        if missing:
            raise ValueError(f"no limits are set for {missing[0]}")
        if len(set(scopes)) < len(scopes):
            raise ValueError("a scope is named twice")
        plan = [self._accounts[scope] for scope in scopes], tuple(self._limits[scope] for scope in scopes)
        self._plans[scopes] = plan
        return plan

    def _charge_device(self, scopes: tuple[Scope, ...], device_us: int) -> Remaining | None:
        over = None
        for account in map(self._accounts.__getitem__, scopes):
            meter = account.device
            if meter is None:
                continue
            meter.roll(self._now)
            # What was charged ahead may be given back when its period has ended.
            meter.spent = max(0, meter.spent + device_us)
            if over is None and meter.spent >= meter.amount and account.scope in self._limits:
                over = used_up(meter.scope, meter.budget, self._now)
            if meter.spent > meter.covered:
                self._uncovered.add(meter)
        return over

    def _usages(self, accounts: list[Account], now: int) -> tuple[Usage, ...]:
        for account in accounts:
            account.move_to(now // MICRO, now)
        return tuple([account.usage() for account in accounts])

    def _refuse(
        self,
        scopes: tuple[Scope, ...],
        accounts: list[Account],
        limits: tuple[Limits, ...],
        demand: Demand,
        now: int,
    ) -> Refused:
        """The refusal by the limit that takes longest to make room."""
        usages = self._usages(accounts, now)
        worst: tuple[int, LimitName] | None = None
        worst_wait: int | None = 0
        for index, account in enumerate(accounts):
            for name in LIMIT_NAMES:
                wait = account.wait(name, demand, now, self._expires)
                if wait is None or (worst_wait is not None and wait > worst_wait):
                    worst, worst_wait = (index, name), wait
                    if wait is None:
                        break
            if worst_wait is None:
                break
        if worst is None:
            raise RuntimeError("a demand was refused that every limit has room for")
        return refusal(
            scopes=scopes,
            limits=limits,
            usages=usages,
            demand=demand,
            at=now,
            which=worst,
            retry_after_us=worst_wait,
        )

    def _expires(self, name: str) -> int:
        return self._live[name].expires

    def check_invariants(self) -> None:
        """Raises RuntimeError where the counts contradict each other. O(everything that is held)."""
        for account in self._accounts.values():
            account.check_invariants()
        held = {(name, id(part[0])) for name, hold in self._live.items() for part in hold.parts}
        for account in self._accounts.values():
            if any((name, id(account)) not in held for name in account.leases):
                raise RuntimeError(f"{account.scope} counts a request that is not live")
