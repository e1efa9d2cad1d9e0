"""The ledger that several gateways share through one Redis.

Every decision is one run of one script (ledger.lua) on the server, by the server's clock, so gateways need not
agree about time nor know of each other. Same semantics as `LocalLedger`.

What Redis loses, the ledger forgets. With `appendonly yes` and `appendfsync always` nothing that was answered
is lost, and overshoot is 0 through any restart. With `appendfsync everysec` (Redis' default once appendonly is
on) a crash of the machine forgets what was reserved in about the last second; with snapshots, since the last one;
without persistence, everything: budgets start anew. The same holds for a replica that is promoted, which may lack
what was not copied yet. A minute's limits forget no more than a minute either way. `maxmemory-policy` must be
`noeviction`, or no `maxmemory` set: an evicted key is a count forgotten; `open` refuses others where it can see them.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from airi.errors import ConfigError
from airi.policy.ledger.leases import Leases
from airi.policy.ledger.limits import LIMIT_NAMES, MAX_LIMIT, MICRO, Budget, Demand, Limits, LimitTable, Scope
from airi.policy.ledger.local import LEASE_US
from airi.policy.ledger.outcome import Refused, Remaining, Reservation, Usage, refusal, remaining_of, used_up
from airi.policy.ledger.script import Argument, Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LOG = logging.getLogger(__name__)
_NOTHING = Demand(requests=0, parallel=0)
_USAGE = len(Usage._fields)
_RENEWED_AT_ONCE = 256
"""Ids in one run of the script: a longer one would keep other gateways waiting."""


class _Plan(NamedTuple):
    """What the script is given for a tuple of scopes with their limits; as bytes, so as not to encode it each time."""

    limits: tuple[Limits, ...]
    keys: tuple[bytes, ...]
    reserve: tuple[bytes, ...]
    device: tuple[bytes, ...]


class RedisLedger:
    """Counts in Redis for all gateways that use the same server and prefix.

    Where Redis does not answer, every call raises LedgerUnavailableError, and no request is to be admitted. A
    reservation whose answer was lost stays charged; its place among parallel requests comes back with its lease.

    Thread safety: none; one event loop.
    """

    def __init__(
        self,
        limits: LimitTable,
        redis: Redis,
        *,
        prefix: str = "airi",
        lease_s: float = LEASE_US / MICRO,
        script: Script | None = None,
    ) -> None:
        """`redis` should not retry by itself (`connect` makes such a one): what was not answered may have run."""
        self._redis = redis
        self._prefix = prefix
        self._lease_us = int(lease_s * MICRO)
        self._script = script or Script(redis)
        self._leases = Leases(lease_s, self.renew)
        self._gateway = secrets.token_hex(8)
        self._serial = 0
        self._plans: dict[tuple[Scope, ...], _Plan] = {}
        self._limits = limits

    async def open(self) -> None:
        """Looks at the server's settings and begins to renew leases.

        Raises ConfigError where it may evict keys; logs a warning where budgets would not survive its crash.
        """
        memory = await self._script.server_info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and memory.get("maxmemory", 0):
            raise ConfigError(
                f"the Redis for shared_counters has maxmemory-policy {policy!r}; accepted: noeviction, as an "
                "evicted key is a count forgotten",
                field="shared_counters",
            )
        persistence = await self._script.server_info("persistence")
        budgets = any(limits.budget or limits.device_seconds for limits in self._limits.values())
        if budgets and not persistence.get("aof_enabled", 1):
            _LOG.warning(
                "the Redis for shared_counters has appendonly off: budgets forget what was spent when it crashes"
            )
        self._leases.start()

    async def close(self) -> None:
        """Renews no more and closes the connections."""
        await self._leases.stop()
        await self._script.close()
        await self._redis.aclose()

    async def prepare_limits(self, limits: LimitTable) -> Callable[[], None]:
        """What replaces all limits at once; every gateway has its own and should be given the same.

        Scopes keep their counts; a budget of another period is another count.
        """

        def replace_limits() -> None:
            self._limits = limits
            self._plans.clear()

        return replace_limits

    async def set_limits(self, limits: LimitTable) -> None:
        """Replaces all limits at once."""
        (await self.prepare_limits(limits))()

    async def reserve(self, scopes: Sequence[Scope], demand: Demand) -> Reservation | Refused:
        """Charges `demand` to all scopes, which are of one tenant, or to none.

        Without any scope nothing is counted, and Redis is not asked; so with that reservation in other calls.
        Raises ValueError for a scope that has no limits.
        """
        scopes = tuple(scopes)
        self._serial += 1
        name = f"{self._gateway}-{self._serial}"
        if not scopes:
            now = time.time_ns() // 1000
            return Reservation(id=name, scopes=(), demand=demand, at=now, limits=(), usages=())
        plan = self._plans.get(scopes) or self._plan(scopes)
        arguments: tuple[Argument, ...] = (
            "reserve",
            self._lease_us,
            name,
            demand.requests,
            demand.input_tokens,
            demand.output_tokens,
            demand.cost_micro,
            demand.parallel,
            *plan.reserve,
        )

        def outcome_of(reply: Sequence[int]) -> Reservation | Refused:
            return _outcome(reply, name, scopes, demand, plan.limits)

        def abandoned(reply: Sequence[int]) -> None:
            outcome = outcome_of(reply)
            if isinstance(outcome, Reservation):
                self._script.send(plan.keys, _settlement(plan, outcome, _NOTHING, 0))

        outcome = outcome_of(await self._script.run(plan.keys, arguments, abandoned=abandoned))
        if isinstance(outcome, Reservation):
            self._leases.add(outcome)
        return outcome

    async def settle(self, reservation: Reservation, used: Demand, device_us: int = 0) -> bool:
        """Ends a reservation: what `used` leaves over is given back, `device_us` more is charged.

        False where its lease had ended or it was settled before: nothing is given back then, so what it had
        reserved stays charged. Raises ValueError where more was used than reserved.
        """
        plan = self._plan_of(reservation)
        arguments = _settlement(plan, reservation, used, device_us)
        if not reservation.scopes:
            return True
        self._leases.discard(reservation)
        [held] = await self._script.run(plan.keys, arguments)
        return bool(held)

    async def charge_device(self, reservation: Reservation, device_us: int) -> Remaining | None:
        """Charges device time, or gives back, below 0, what was charged ahead of its use.

        Returns the limit of a scope that has none left: the request is to end. None while all have some.
        """
        while True:
            plan = self._plan_of(reservation)
            if not any(limits.device_seconds for limits in plan.limits):
                return None
            over, now = await self._script.run(plan.keys, ("charge", device_us, *plan.device))
            budget = None if over < 0 else plan.limits[over].device_seconds
            if budget is None:
                return None
            if self._plan_of(reservation).device == plan.device:
                return used_up(reservation.scopes[over], budget, now)
            device_us = 0  # it is charged; limits were replaced meanwhile, and those of now are asked

    async def renew(self, reservations: Iterable[Reservation] | None = None) -> list[Reservation]:
        """Renews the leases of these, else of all live reservations, as a task does. Returns those that had ended."""
        groups: dict[tuple[bytes, ...], list[Reservation]] = defaultdict(list)
        for reservation in self._leases if reservations is None else reservations:
            if reservation.scopes:
                groups[self._plan_of(reservation).keys].append(reservation)
        lost = []
        for keys, group in groups.items():
            for first in range(0, len(group), _RENEWED_AT_ONCE):
                some = {r.id: r for r in group[first : first + _RENEWED_AT_ONCE]}
                reply = await self._script.run(keys, ("renew", self._lease_us, *some))
                lost += [some[name.decode()] for name in reply]
        for reservation in lost:
            self._leases.discard(reservation)
        return lost

    async def remaining(self, scopes: Sequence[Scope]) -> tuple[Remaining, ...]:
        """What every limit of these scopes has left."""
        scopes = tuple(scopes)
        if not scopes:
            return ()
        plan = self._plans.get(scopes) or self._plan(scopes)
        now, *values = await self._script.run(plan.keys, ("remaining", *plan.reserve))
        return remaining_of(scopes, plan.limits, _usages(values), now)

    def _plan(self, scopes: tuple[Scope, ...]) -> _Plan:
        missing = [scope for scope in scopes if scope not in self._limits]
        if missing:
            raise ValueError(f"no limits are set for {missing[0]}")
        if len(set(scopes)) < len(scopes):
            raise ValueError("a scope is named twice")
        if len({scope.tenant for scope in scopes}) > 1:
            raise ValueError("scopes of one request are of one tenant")
        limits = tuple(self._limits[scope] for scope in scopes)
        plan = self._plans[scopes] = self._plan_with(scopes, limits)
        return plan

    def _plan_of(self, reservation: Reservation) -> _Plan:
        """With the limits under which it was made, but device time, which is used now, with those of now.

        Of a scope that is not limited any more device time is counted without an end: it may come back.
        """
        plan = self._plans.get(reservation.scopes)
        if plan is not None and plan.limits is reservation.limits:
            return plan
        limits = []
        for scope, made_under in zip(reservation.scopes, reservation.limits, strict=True):
            budget = made_under.device_seconds
            if scope in self._limits:
                budget = self._limits[scope].device_seconds
            elif budget is not None:
                budget = replace(budget, amount_micro=MAX_LIMIT)
            limits.append(replace(made_under, device_seconds=budget))
        return self._plan_with(reservation.scopes, tuple(limits))

    def _plan_with(self, scopes: tuple[Scope, ...], limits: tuple[Limits, ...]) -> _Plan:
        keys = self._keys(scopes, limits)
        return _Plan(limits, keys, _encoded(_limit_arguments(limits)), _encoded(_device_arguments(limits)))

    def _keys(self, scopes: tuple[Scope, ...], limits: tuple[Limits, ...]) -> tuple[bytes, ...]:
        """All in one hash slot of a cluster: the braces hold the tenant."""
        tenant = quote(scopes[0].tenant if scopes else "", safe="")
        start = f"{self._prefix}:{{{tenant}}}"
        keys = [f"{start}:clock", f"{start}:leases"]
        for scope, scope_limits in zip(scopes, limits, strict=True):
            # `*` stands for any: quoted names never have one.
            names = (
                "*" if part is None else quote(part, safe="") for part in (scope.model, scope.priority_class)
            )
            base = ":".join((start, *names))
            keys += [
                f"{base}:window",
                f"{base}:parallel",
                f"{base}:money:{_period_s(scope_limits.budget)}",
                f"{base}:device:{_period_s(scope_limits.device_seconds)}",
            ]
        return _encoded(keys)


def _settlement(plan: _Plan, reservation: Reservation, used: Demand, device_us: int) -> tuple[Argument, ...]:
    budgets: list[Argument] = []
    for limits in plan.limits:
        budgets.append(_period_us(limits.budget))
        budgets.append("" if limits.budget is None else limits.budget.period_index(reservation.at))
    return (
        "settle",
        reservation.id,
        reservation.at // MICRO,
        *reservation.demand.unused(used),
        device_us,
        *plan.device,
        *budgets,
    )


def _encoded(arguments: Iterable[Argument]) -> tuple[bytes, ...]:
    return tuple(str(argument).encode() for argument in arguments)


def _outcome(
    reply: Sequence[int], name: str, scopes: tuple[Scope, ...], demand: Demand, limits: tuple[Limits, ...]
) -> Reservation | Refused:
    if reply[0]:
        return Reservation(
            id=name, scopes=scopes, demand=demand, at=reply[1], limits=limits, usages=_usages(reply[2:])
        )
    _, now, scope, limit, fits_later, wait = reply[:6]
    return refusal(
        scopes=scopes,
        limits=limits,
        usages=_usages(reply[6:]),
        demand=demand,
        at=now,
        which=(scope, LIMIT_NAMES[limit]),
        retry_after_us=wait if fits_later else None,
    )


def _usages(values: Sequence[int]) -> tuple[Usage, ...]:
    return tuple(Usage(*values[i : i + _USAGE]) for i in range(0, len(values), _USAGE))


def _period_s(budget: Budget | None) -> int | str:
    return "" if budget is None else budget.period_s or 0


def _period_us(budget: Budget | None) -> int | str:
    return "" if budget is None else (budget.period_s or 0) * MICRO


def _limit_arguments(limits: tuple[Limits, ...]) -> list[Argument]:
    arguments: list[Argument] = []
    for one in limits:
        values = [one.value(name) for name in LIMIT_NAMES]
        arguments += ["" if value is None else value for value in values[:6]]
        arguments += [_period_us(one.budget), "" if values[6] is None else values[6]]
        arguments.append(_period_us(one.device_seconds))
    return arguments


def _device_arguments(limits: tuple[Limits, ...]) -> list[Argument]:
    arguments: list[Argument] = []
    for one in limits:
        budget = one.device_seconds
        arguments += ["" if budget is None else budget.amount_micro, _period_us(budget)]
    return arguments
