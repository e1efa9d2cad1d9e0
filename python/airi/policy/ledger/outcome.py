"""What a ledger answers: a reservation or a refusal, both with how much is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from airi.policy.ledger.limits import (
    LIMIT_NAMES,
    MICRO,
    WINDOW_SLOTS,
    Budget,
    Demand,
    LimitName,
    Limits,
    Scope,
)


class Usage(NamedTuple):
    """What a scope holds at one moment: the window's sums, live requests, and the period's budgets.

    `last_request_slot` and `last_token_slot` are the seconds (since 1970) that were last charged.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    parallel: int
    cost_micro: int
    device_us: int
    last_request_slot: int
    last_token_slot: int

    def of(self, name: LimitName) -> int:
        """The amount that the limit of that name bounds."""
        if name is LimitName.TOKENS:
            return self.input_tokens + self.output_tokens
        return self[_FIELDS[name]]


_FIELDS = {
    LimitName.REQUESTS: 0,
    LimitName.INPUT_TOKENS: 1,
    LimitName.OUTPUT_TOKENS: 2,
    LimitName.PARALLEL: 3,
    LimitName.BUDGET: 4,
    LimitName.DEVICE: 5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """One limit of one scope: what is left of it.

    Attributes:
      limit, remaining: In the limit's unit; a budget's in millionths.
      reset_us: Microseconds until all of it is free again if nothing else is charged. None: no time says.
    """

    name: LimitName
    scope: Scope
    limit: int
    remaining: int
    reset_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Reservation:
    """The right to use at most `demand`, charged to every scope until it is settled.

    Attributes:
      id: Unique among all that share the ledger.
      at: When it was made, microseconds since 1970 by the ledger's clock. Its use counts there.
      limits: Of each scope, as they were then.
      usages: Of each scope, this one included.
    """

    id: str
    scopes: tuple[Scope, ...]
    demand: Demand
    at: int
    limits: tuple[Limits, ...]
    usages: tuple[Usage, ...]

    @property
    def remaining_limits(self) -> tuple[Remaining, ...]:
        """What every limit has left after this reservation."""
        return remaining_of(self.scopes, self.limits, self.usages, self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A demand that does not fit: nothing was charged to any scope.

    Attributes:
      name, scope: The limit that keeps it out for longest, and whose it is.
      limit, remaining, demanded: Of that limit, in its unit.
      retry_after_us: When the demand fits if nothing else comes and no request ends: exact. None: never, for
        it is larger than the limit, or the budget has no further period.
    """

    name: LimitName
    scope: Scope
    limit: int
    remaining: int
    demanded: int
    retry_after_us: int | None
    at: int
    scopes: tuple[Scope, ...]
    limits: tuple[Limits, ...]
    usages: tuple[Usage, ...]

    @property
    def remaining_limits(self) -> tuple[Remaining, ...]:
        """What every limit has left, without this demand."""
        return remaining_of(self.scopes, self.limits, self.usages, self.at)

    @property
    def never_fits(self) -> bool:
        """Whether waiting is of no use."""
        return self.retry_after_us is None

    @property
    def retry_after_s(self) -> float | None:
        """`retry_after_us` in seconds."""
        return None if self.retry_after_us is None else self.retry_after_us / MICRO

    @property
    def message(self) -> str:
        """One line that names the limit, whose it is, and when to come back."""
        unit = _UNITS.get(self.name, 1)
        amounts = [format_amount(n, unit) for n in (self.limit, self.remaining, self.demanded)]
        text = "{} of {} is {}: {} left, {} needed".format(self.name, self.scope, *amounts)
        if self.name is LimitName.DEVICE:
            text = "{} of {} is {}: {} left".format(self.name, self.scope, *amounts)
        if self.retry_after_us is None:
            return f"{text}; waiting does not help"
        return f"{text}; retry in {-(-self.retry_after_us // MICRO)} s"


_UNITS = {LimitName.BUDGET: MICRO, LimitName.DEVICE: MICRO}


def format_amount(amount: int, unit: int) -> str:
    """A whole number of 1/unit, as a decimal number without zeros at its end."""
    if unit == 1:
        return str(amount)
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, part = divmod(amount, unit)
    return f"{sign}{whole}" + (f".{part:06d}".rstrip("0") if part else "")


def used_up(scope: Scope, budget: Budget, now: int) -> Remaining:
    """Device time of a scope that has none left."""
    end = budget.period_end(budget.period_index(now))
    return Remaining(
        name=LimitName.DEVICE,
        scope=scope,
        limit=budget.amount_micro,
        remaining=0,
        reset_us=None if end is None else end - now,
    )


def remaining_of(
    scopes: Sequence[Scope], limits: Sequence[Limits], usages: Sequence[Usage], now: int
) -> tuple[Remaining, ...]:
    """What is left of every limit that is set, scope by scope."""
    found = []
    for scope, scope_limits, usage in zip(scopes, limits, usages, strict=True):
        for name in LIMIT_NAMES:
            limit = scope_limits.value(name)
            if limit is None:
                continue
            found.append(
                Remaining(
                    name=name,
                    scope=scope,
                    limit=limit,
                    remaining=max(0, limit - usage.of(name)),
                    reset_us=_reset_us(name, scope_limits, usage, now),
                )
            )
    return tuple(found)


def _reset_us(name: LimitName, limits: Limits, usage: Usage, now: int) -> int | None:
    if name is LimitName.PARALLEL:
        return None
    if name in _UNITS:
        budget = limits.budget if name is LimitName.BUDGET else limits.device_seconds
        end = None if budget is None else budget.period_end(budget.period_index(now))
        return None if end is None else end - now
    slot = usage.last_request_slot if name is LimitName.REQUESTS else usage.last_token_slot
    return max(0, (slot + WINDOW_SLOTS + 1) * MICRO - now)


def refusal(
    *,
    scopes: tuple[Scope, ...],
    limits: tuple[Limits, ...],
    usages: tuple[Usage, ...],
    demand: Demand,
    at: int,
    which: tuple[int, LimitName],
    retry_after_us: int | None,
) -> Refused:
    """The refusal by limit `which`: (index of the scope, name)."""
    index, name = which
    limit = limits[index].value(name)
    if limit is None:
        raise ValueError(f"{name} of {scopes[index]} is not set")
    return Refused(
        name=name,
        scope=scopes[index],
        limit=limit,
        remaining=max(0, limit - usages[index].of(name)),
        demanded=demanded(demand, name),
        retry_after_us=retry_after_us,
        at=at,
        scopes=scopes,
        limits=limits,
        usages=usages,
    )


def demanded(demand: Demand, name: LimitName) -> int:
    """How much of a limit a demand takes. Device time is not known before: any at all."""
    amounts = (
        demand.requests,
        demand.input_tokens + demand.output_tokens,
        demand.input_tokens,
        demand.output_tokens,
        demand.parallel,
        demand.cost_micro,
        1,
    )
    return amounts[LIMIT_NAMES.index(name)]
