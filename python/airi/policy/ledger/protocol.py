"""What a gateway needs of a ledger, wherever it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from airi.policy.ledger.limits import Demand, LimitTable, Scope
from airi.policy.ledger.outcome import Refused, Remaining, Reservation


class Ledger(Protocol):
    """Reserve before a request runs, settle when it has ended. `ProcessLedger` and `RedisLedger` are ledgers.

    Every method may raise LedgerUnavailableError: then no request is to be admitted, and no limit has changed.
    """

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def prepare_limits(self, limits: LimitTable) -> Callable[[], None]:
        """All that can fail of replacing the limits; what is returned replaces them, all at once."""
        ...

    async def set_limits(self, limits: LimitTable) -> None:
        """Replaces all limits at once."""
        ...

    async def reserve(self, scopes: Sequence[Scope], demand: Demand) -> Reservation | Refused:
        """Charges `demand` to all scopes, or to none."""
        ...

    async def settle(self, reservation: Reservation, used: Demand, device_us: int = 0) -> bool:
        """Ends a reservation, gives back what was not used and charges `device_us` more as `charge_device` does.

        False: its lease had ended, nothing was given back but device time.
        """
        ...

    async def charge_device(self, reservation: Reservation, device_us: int) -> Remaining | None:
        """Charges device time, or gives back, below 0, what was charged ahead of its use.

        Returns the limit of a scope that has none left: the request is to end. None while all have some.
        """
        ...

    async def renew(self, reservations: Iterable[Reservation] | None = None) -> list[Reservation]:
        """Renews the leases of these, else of all that are live here, as a task does three times per lease.

        Returns those that had ended: their places among parallel requests may be others' by now.
        """
        ...

    async def remaining(self, scopes: Sequence[Scope]) -> tuple[Remaining, ...]:
        """What every limit of these scopes has left."""
        ...
