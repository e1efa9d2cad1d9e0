"""Keeping what a gateway has reserved alive for as long as the gateway is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from weakref import WeakValueDictionary

from airi.errors import LedgerUnavailableError
from airi.policy.ledger.outcome import Reservation

_LOG = logging.getLogger(__name__)


class Leases:
    """The live reservations of this process, and a task that renews them three times per lease.

    Holds them weakly: one that its request has dropped without settling is not renewed, so its place among
    parallel requests comes back when its lease ends.
    """

    def __init__(self, lease_s: float, renew: Callable[[], Awaitable[object]]) -> None:
        """`renew` renews all of them; a LedgerUnavailableError of it is logged, and it is tried again."""
        self._interval_s = lease_s / 3
        self._renew = renew
        self._live: WeakValueDictionary[str, Reservation] = WeakValueDictionary()
        self._task: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Reservation]:
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def add(self, reservation: Reservation) -> None:
        self._live[reservation.id] = reservation

    def discard(self, reservation: Reservation) -> None:
        self._live.pop(reservation.id, None)

    def start(self) -> None:
        """Begins to renew, on the running event loop."""
        self._task = asyncio.create_task(self._run(), name="ledger-leases")

    async def stop(self) -> None:
        """Renews no more: what is still live returns its places when its leases end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._renew()
            except LedgerUnavailableError as error:
                _LOG.warning("leases of %d requests were not renewed: %s", len(self), error)
