"""Limits as data: how much each scope may use, and what one request asks for.

Amounts are integers: tokens, requests, millionths of a currency unit (`_micro`) and microseconds of
device time. A minute is any interval of 60 seconds, not one that starts on the clock's minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

MICRO = 1_000_000
"""Microseconds in a second, millionths in a currency unit."""

WINDOW_SLOTS = 60
"""Seconds before the current one whose use still counts."""

PERIOD_ANCHOR_S = 4 * 86_400
"""Monday 1970-01-05 00:00 UTC. Periods start at whole multiples of their length from here."""

MAX_AMOUNT = 2**40
"""The most that one request may ask for of anything."""

MAX_LIMIT = 2**52
"""The highest limit: what a double, and so a script in Redis, still counts exactly."""


class LimitName(StrEnum):
    """The limits by their names in the config, in the order in which they are compared."""

    REQUESTS = "rpm_limit"
    TOKENS = "tpm_limit"
    INPUT_TOKENS = "input_tpm_limit"
    OUTPUT_TOKENS = "output_tpm_limit"
    PARALLEL = "max_parallel_requests"
    BUDGET = "max_budget"
    DEVICE = "max_device_seconds"


def _checked(name: str, value: object, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
        raise ValueError(f"{name} is {value!r}; accepted: a whole number from 0 to {highest}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """An amount that may be used within each period.

    Attributes:
      amount_micro: Millionths of a currency unit, or microseconds of device time.
      period_s: Seconds that a period lasts. Periods follow each other without gaps from Monday
        1970-01-05 00:00 UTC, so one day starts at midnight UTC and seven days on a Monday. None: the
        amount is for good.
    """

    amount_micro: int
    period_s: int | None = None

    def __post_init__(self) -> None:
        _checked("amount_micro", self.amount_micro, MAX_LIMIT)
        if self.period_s is not None:
            _checked("period_s", self.period_s, 100 * 366 * 86_400)
            if self.period_s == 0:
                raise ValueError("period_s is 0; accepted: seconds from 1, or None for no end")

    def period_index(self, now: int) -> int:
        """The number of the period that `now`, in microseconds since 1970, falls into; 0 without periods."""
        if self.period_s is None:
            return 0
        return (now - PERIOD_ANCHOR_S * MICRO) // (self.period_s * MICRO)

    def period_end(self, index: int) -> int | None:
        """The first microsecond after a period; None where it never ends."""
        if self.period_s is None:
            return None
        return ((index + 1) * self.period_s + PERIOD_ANCHOR_S) * MICRO


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one scope may use. None: as much as it likes.

    Attributes:
      tokens_per_minute: Of input and output together.
      budget: Money, by the prices of models.
      device_seconds: Measured time on devices, known only when it is used.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    max_parallel_requests: int | None = None
    budget: Budget | None = None
    device_seconds: Budget | None = None

    def __post_init__(self) -> None:
        for field in fields(self)[:5]:
            value = getattr(self, field.name)
            if value is not None:
                _checked(field.name, value, MAX_LIMIT)

    def value(self, name: LimitName) -> int | None:
        """The limit of that name, as a number: a budget's is its amount."""
        values = (
            self.requests_per_minute,
            self.tokens_per_minute,
            self.input_tokens_per_minute,
            self.output_tokens_per_minute,
            self.max_parallel_requests,
            None if self.budget is None else self.budget.amount_micro,
            None if self.device_seconds is None else self.device_seconds.amount_micro,
        )
        return values[LIMIT_NAMES.index(name)]


LIMIT_NAMES = tuple(LimitName)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which calls a set of limits counts: those of a tenant, or only of one model, one priority class or both."""

    tenant: str
    model: str | None = None
    priority_class: str | None = None

    def __str__(self) -> str:
        parts = [f"tenant {self.tenant!r}"]
        if self.model is not None:
            parts.append(f"model {self.model!r}")
        if self.priority_class is not None:
            parts.append(f"class {self.priority_class!r}")
        return ", ".join(parts)


class LimitTable(Mapping[Scope, Limits]):
    """The limits of every scope, and which scopes a call falls under. Never changes.

    Thread safety: any thread.
    """

    def __init__(self, limits: Mapping[Scope, Limits]) -> None:
        self._limits = dict(limits)
        self._scopes = {(scope.tenant, scope.model, scope.priority_class): scope for scope in self._limits}

    def __getitem__(self, scope: Scope) -> Limits:
        return self._limits[scope]

    def __iter__(self) -> Iterator[Scope]:
        return iter(self._limits)

    def __len__(self) -> int:
        return len(self._limits)

    def scopes_for(self, tenant: str, model: str | None, priority_class: str | None) -> tuple[Scope, ...]:
        """Every scope that a call falls under, the widest first."""
        keys = dict.fromkeys(
            (
                (tenant, None, None),
                (tenant, model, None),
                (tenant, None, priority_class),
                (tenant, model, priority_class),
            )
        )
        return tuple(self._scopes[key] for key in keys if key in self._scopes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The most that one request may use or, when it is settled, what it has used.

    Attributes:
      output_tokens: The most it may generate.
      cost_micro: The price of all of it, in millionths of a currency unit.
      parallel: 1, or 0 for a call that is over at once and takes no place among parallel requests.
    """

    requests: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micro: int = 0
    parallel: int = 1

    def __post_init__(self) -> None:
        for value in (self.requests, self.input_tokens, self.output_tokens, self.cost_micro):
            if not 0 <= value <= MAX_AMOUNT:
                self._refuse()
        if self.parallel not in (0, 1):
            raise ValueError(f"parallel is {self.parallel!r}; accepted: 0 or 1")

    def _refuse(self) -> None:
        for field in fields(self)[:4]:
            _checked(field.name, getattr(self, field.name), MAX_AMOUNT)

    def unused(self, used: Demand) -> tuple[int, int, int, int]:
        """Requests, input tokens, output tokens and cost of this that `used` leaves over.

        Raises ValueError where more was used than this: it was not the most.
        """
        rest = (
            self.requests - used.requests,
            self.input_tokens - used.input_tokens,
            self.output_tokens - used.output_tokens,
            self.cost_micro - used.cost_micro,
        )
        if min(rest) < 0:
            name = ("requests", "input_tokens", "output_tokens", "cost_micro")[
                [r < 0 for r in rest].index(True)
            ]
            raise ValueError(
                f"{name} used is {getattr(used, name)}; accepted: at most the {getattr(self, name)} reserved"
            )
        return rest
