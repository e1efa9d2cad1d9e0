"""Limits as a call meets them: reserved before it runs, settled when it has ended, told in its headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
        self,
        tenant: str,
        model: str,
        priority_class: str,
        most: tuple[int, int, int],
        end: Callable[[Exception], object],
    ) -> Held | None:
        """Holds the most that a call may use: requests, tokens of prompts and of answers. None where nothing limits it.

        `end` is called while it runs with the 429 to give where its device time is used up, or with the reason why that
        cannot be counted: from then on it is to use no more.
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
        return Held(self._ledger, outcome, demand, end)

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
    What the ledger did not take is charged with what comes next.
    """

    def __init__(
        self,
        ledger: Ledger,
        reservation: Reservation,
        demand: Callable[[int, int, int], Demand],
        end: Callable[[Exception], object],
    ) -> None:
        """`end` is as in `Limiter.reserve`."""
        self._ledger, self._demand, self._end = ledger, demand, end
        self.reservation = reservation
        self.headers = _headers(reservation)
        """What a response says of the limits that hold it."""
        self.is_metered = any(limits.device_seconds is not None for limits in reservation.limits)
        """Whether it is to be told of device time as it is used."""
        self.used: Demand | None = None
        """What was charged in the end; None before."""
        self._told = self._fresh = self._ahead = self._charged = 0
        self._charging: asyncio.Task[None] | None = None
        self._has_news = False
        self._runs = True
        self._settled = False

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
        used = self._demand(min(requests, self.reservation.demand.requests), input_tokens, output_tokens)
        self.used = used
        due = self._due(1)
        try:
            await self._ledger.settle(self.reservation, used, due)
        except BaseException:
            self._charged -= due
            raise

    def _due(self, times: int) -> int:
        """What to charge now, which counts as charged until that fails; ahead, what is new so many times."""
        if self._fresh:
            self._ahead, self._fresh = times * self._fresh, 0
        due = self._told + (self._ahead if self._runs else 0) - self._charged
        self._charged += due
        self._has_news = False
        return due

    async def _charge(self) -> None:
        due, times = 0, 1
        try:
            while self._has_news:
                due = self._due(times)
                over = await self._ledger.charge_device(self.reservation, due)
                due, times = 0, 2
                if self._runs and over is not None:
                    self._end(_used_up(over))
        except Exception as error:  # whatever it is, nothing runs on that is not counted
            self._charged -= due
            self._end(error)
        finally:
            self._charging = None


def _refusal(refused: Refused) -> OverLimitError:
    limit, scope = str(refused.name), str(refused.scope)
    return OverLimitError(refused.message, limit, scope, _headers(refused), money=refused.name in _MONEY)


def _used_up(over: Remaining) -> OverLimitError:
    """The 429 of a call that was let in and has used up a scope's device time."""
    message = f"{over.name} of {over.scope} is {format_amount(over.limit, MICRO)}: used up"
    headers: Headers = ()
    if over.reset_us is not None:
        seconds = -(-over.reset_us // MICRO)
        message += f"; retry in {seconds} s"
        headers = ((b"retry-after", str(seconds).encode()),)
    return OverLimitError(message, str(over.name), str(over.scope), headers, money=True)


def _headers(outcome: Reservation | Refused) -> Headers:
    return tuple((name.encode(), value.encode()) for name, value in ratelimit_headers(outcome).items())
