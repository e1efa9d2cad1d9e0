"""Limits as a call meets them: reserved before it runs, settled when it has ended, told in its headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from airi.gateway.errors import OverLimitError
from airi.gateway.http import Headers
from airi.policy.ledger import (
    Demand,
    Ledger,
    LimitName,
    LimitTable,
    Refused,
    Remaining,
    Reservation,
    ratelimit_headers,
)
from airi.policy.ledger.limits import MICRO
from airi.policy.ledger.outcome import format_amount

__all__ = ["Held", "Limiter"]

Cost = Callable[[str, int, int], int]
"""What input and output tokens of a model cost, in millionths of the currency."""

_MONEY = (LimitName.BUDGET, LimitName.DEVICE)


class Limiter:
    """Counts calls by a table of limits and the prices of models. A table is never changed: a new one is a new Limiter.

    *Thread safety*: none; event loop only.
    """

    def __init__(self, ledger: Ledger, table: LimitTable, cost: Cost) -> None:
        self.table = table
        self._ledger, self._cost = ledger, cost

    async def reserve(
        self, tenant: str, model: str, priority_class: str, most: tuple[int, int, int]
    ) -> Held | None:
        """Holds the most that a call may use: requests, tokens of prompts and of answers. None where nothing limits it.

        Raises a 429 that names the limit, and LedgerUnavailableError.
        """
        scopes = self.table.scopes_for(tenant, model, priority_class)
        if not scopes:
            return None

        def demand(requests: int, input_tokens: int, output_tokens: int) -> Demand:
            return Demand(
                requests=requests,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cost_micro=self._cost(model, input_tokens, output_tokens),
                parallel=requests,
            )

        outcome = await self._ledger.reserve(scopes, demand(*most))
        if isinstance(outcome, Refused):
            raise _refusal(outcome)
        return Held(self._ledger, outcome, demand)

    async def remaining(self, tenant: str) -> tuple[Remaining, ...]:
        """What every limit of a tenant has left. Raises LedgerUnavailableError."""
        scopes = [scope for scope in self.table if scope.tenant == tenant]
        return await self._ledger.remaining(scopes) if scopes else ()


class Held:
    """What a call holds of its limits until it is settled, and the device time that it is charged from then on.

    Device time is told when it has been used, and by then the next step runs: what was told since the last charge is
    therefore charged once more, ahead, which the next charge corrects. One charge is under way at a time; where that is
    so long that more was told meanwhile, what runs until the next is answered is twice as much.

    *Thread safety*: none; event loop only.
    *Invariant*: once it is settled and runs no longer, and no charge is under way, exactly what was told is charged.
    """

    def __init__(
        self, ledger: Ledger, reservation: Reservation, demand: Callable[[int, int, int], Demand]
    ) -> None:
        self._ledger, self._reservation, self._demand = ledger, reservation, demand
        self.headers = _headers(reservation)
        """What a response says of the limits that hold it."""
        self.is_metered = any(limits.device_seconds is not None for limits in reservation.limits)
        """Whether it is to be told of device time as it is used."""
        self._told = self._fresh = self._ahead = self._charged = 0
        self._charging: asyncio.Task[None] | None = None
        self._has_news = False
        self._runs = True
        self._settled = False
        self._stop: Callable[[], None] = _do_nothing
        self._fail: Callable[[Exception], None] = _do_nothing

    def ends_with(self, stop: Callable[[], None], fail: Callable[[Exception], None]) -> None:
        """Where device time is used up, `stop` is called at once, to use no more, and `fail` with the 429 to give.

        Where it cannot be counted, `fail` is called with the reason.
        """
        self._stop, self._fail = stop, fail

    def use_device(self, device_us: int, *, runs: bool) -> None:
        """So much more device time was used; whether the call `runs` on, and will use more."""
        self._told += device_us
        self._fresh += device_us
        self._runs = runs
        self._has_news = True
        if self._charging is None and (self.is_metered or self._settled):
            self._charging = asyncio.create_task(self._charge())

    async def settle(self, requests: int, input_tokens: int, output_tokens: int) -> None:
        """Gives back what was not used: `requests` is 0 for a call that is not to count as one, as one within another.

        Device time may be told afterwards, too: what still runs ends a step or two later.
        """
        self._settled = True
        if self._charging is not None:
            await self._charging
        used = self._demand(min(requests, self._reservation.demand.requests), input_tokens, output_tokens)
        await self._ledger.settle(self._reservation, used, self._due(1))

    def _due(self, times: int) -> int:
        """What to charge now, which counts as charged; ahead, what is new so many times."""
        if self._fresh:
            self._ahead, self._fresh = times * self._fresh, 0
        due = self._told + (self._ahead if self._runs else 0) - self._charged
        self._charged += due
        self._has_news = False
        return due

    async def _charge(self) -> None:
        try:
            times = 1
            while self._has_news:
                left = await self._ledger.charge_device(self._reservation, self._due(times))
                if self._runs and not left:
                    self._stop()
                    self._fail(_used_up(await self._ledger.remaining(self._reservation.scopes)))
                times = 2
        except Exception as error:  # whatever it is, nothing runs on that is not counted
            self._fail(error)
        finally:
            self._charging = None


def _do_nothing(*_: object) -> None:
    pass


def _refusal(refused: Refused) -> OverLimitError:
    return OverLimitError(refused.message, str(refused.name), _headers(refused), money=refused.name in _MONEY)


def _used_up(remaining: Iterable[Remaining]) -> OverLimitError:
    """The 429 of a call that was let in and has used up a scope's device time."""
    least = min((one for one in remaining if one.name is LimitName.DEVICE), key=lambda one: one.remaining)
    message = f"{least.name} of {least.scope} is {format_amount(least.limit, MICRO)}: used up"
    headers: Headers = ()
    if least.reset_us is not None:
        seconds = -(-least.reset_us // MICRO)
        message += f"; retry in {seconds} s"
        headers = ((b"retry-after", str(seconds).encode()),)
    return OverLimitError(message, str(least.name), headers, money=True)


def _headers(outcome: Reservation | Refused) -> Headers:
    return tuple((name.encode(), value.encode()) for name, value in ratelimit_headers(outcome).items())
