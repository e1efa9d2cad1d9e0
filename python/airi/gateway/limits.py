"""Limits as a call meets them: reserved before it runs, settled when it has ended, told in its headers."""

from __future__ import annotations

from collections.abc import Callable

from airi.gateway.errors import over_limit
from airi.gateway.http import CallRecord
from airi.policy.ledger import Demand, Ledger, LimitName, LimitTable, Refused, Reservation, ratelimit_headers

__all__ = ["Limiter"]

Cost = Callable[[str, int, int], int]
"""What input and output tokens of a model cost, in millionths of the currency."""

_NOTHING = Demand(requests=0, parallel=0)
_MONEY = (LimitName.BUDGET, LimitName.DEVICE)


class Limiter:
    """Counts calls by a table of limits and the prices of models. A table is never changed: a new one is a new Limiter.

    *Thread safety*: none; event loop only.
    """

    def __init__(self, ledger: Ledger, table: LimitTable, cost: Cost) -> None:
        self._ledger, self._table, self._cost = ledger, table, cost

    async def reserve(
        self, record: CallRecord, model: str, priority_class: str, input_tokens: int, output_tokens: int
    ) -> Reservation | None:
        """Holds the most that a call may use; None where nothing limits it.

        Raises a 429 that names the limit, and LedgerUnavailableError.
        """
        scopes = self._table.scopes_for(record.principal.tenant, model, priority_class)
        if not scopes:
            return None
        outcome = await self._ledger.reserve(scopes, self._demand(model, input_tokens, output_tokens))
        headers = tuple((name.encode(), value.encode()) for name, value in ratelimit_headers(outcome).items())
        if isinstance(outcome, Refused):
            raise over_limit(outcome.message, str(outcome.name), headers, money=outcome.name in _MONEY)
        record.headers = headers
        return outcome

    async def settle(self, held: Reservation | None, model: str, used: tuple[int, int] | None) -> None:
        """Gives back what was not used of a reservation; `used`: tokens of prompts and answers, None for nothing."""
        if held is not None:
            await self._ledger.settle(held, _NOTHING if used is None else self._demand(model, *used))

    def _demand(self, model: str, input_tokens: int, output_tokens: int) -> Demand:
        cost = self._cost(model, input_tokens, output_tokens)
        return Demand(input_tokens=input_tokens, output_tokens=output_tokens, cost_micro=cost)
