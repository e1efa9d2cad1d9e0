"""The in-process ledger as a gateway uses it: with a clock, leases that renew, and budgets that survive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from airi.errors import AiriError, LedgerUnavailableError
from airi.policy.ledger.budgets import BudgetRecord, BudgetStore
from airi.policy.ledger.leases import Leases
from airi.policy.ledger.limits import MICRO, Demand, LimitTable, Scope
from airi.policy.ledger.local import LEASE_US, LocalLedger
from airi.policy.ledger.outcome import Refused, Remaining, Reservation

_LOG = logging.getLogger(__name__)
_NOTHING = Demand(requests=0, parallel=0)


def steady_clock() -> Callable[[], int]:
    """Microseconds since 1970 that never go back: the time of day now, then a steady clock from there."""
    offset = time.time_ns() - time.monotonic_ns()
    return lambda: (time.monotonic_ns() + offset) // 1000


class ProcessLedger:
    """Counts for the one gateway process that holds it.

    With a store, money is saved before a request may spend it: a crash never forgets a reservation, and what
    is counted after it is at most 1/128 of a budget too much. Without one, budgets start anew with the process.

    Thread safety: none; one event loop.
    """

    def __init__(
        self,
        limits: LimitTable,
        *,
        store: BudgetStore | None = None,
        lease_s: float = LEASE_US / MICRO,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._limits = limits
        self._store = store
        self._clock = clock or steady_clock()
        self._ledger = LocalLedger(LimitTable({}), lease_us=int(lease_s * MICRO), durable=store is not None)
        self._leases = Leases(lease_s, self.renew)
        self._saving = asyncio.Lock()
        self._failing = False

    async def open(self) -> None:
        """Loads what budgets have spent. Raises LedgerUnavailableError where the store cannot be read."""
        await self.set_limits(self._limits)
        self._leases.start()

    async def close(self) -> None:
        """Saves what budgets have really spent. What is still reserved then stays charged."""
        await self._leases.stop()
        async with self._saving:
            await self._write(self._ledger.exact_records(self._clock()))

    async def prepare_limits(self, limits: LimitTable) -> Callable[[], None]:
        """Loads what the budgets of these limits have spent. What is returned is `LocalLedger.set_limits` with them.

        Raises LedgerUnavailableError where it cannot be loaded, and where another server counts for itself beside this
        one: each would allow all of a limit.
        """
        if self._store is not None and limits:
            wanted = self._ledger.unknown(limits, self._clock())
            try:
                records = await self._store.load_budgets(wanted)
            except Exception as error:
                raise _unavailable("limits cannot be counted", error) from error
            self._ledger.add_records(records)
        return partial(self._ledger.set_limits, limits)

    async def set_limits(self, limits: LimitTable) -> None:
        """Replaces all limits at once. Raises LedgerUnavailableError as `prepare_limits`: then nothing changes."""
        (await self.prepare_limits(limits))()

    async def reserve(self, scopes: Sequence[Scope], demand: Demand) -> Reservation | Refused:
        """See `LocalLedger.reserve`. Raises LedgerUnavailableError where money cannot be saved: nothing is charged."""
        outcome = self._ledger.reserve(scopes, demand, self._clock())
        if isinstance(outcome, Refused):
            return outcome
        if self._ledger.needs_saving:
            try:
                await self._save()
            except BaseException:
                self._ledger.settle(outcome, _NOTHING, 0, self._clock())
                raise
        self._leases.add(outcome)
        return outcome

    async def settle(self, reservation: Reservation, used: Demand, device_us: int = 0) -> bool:
        """See `LocalLedger.settle`. It is done also where its device time cannot be saved yet, which the log tells."""
        held = self._ledger.settle(reservation, used, device_us, self._clock())
        self._leases.discard(reservation)
        if self._ledger.needs_saving:
            with suppress(LedgerUnavailableError):  # it is settled here, and saved before more is admitted
                await self._save()
        return held

    async def charge_device(self, reservation: Reservation, device_us: int) -> Remaining | None:
        """See `LocalLedger.charge_device`.

        Raises LedgerUnavailableError where it cannot be saved: nothing is charged.
        """
        over = self._ledger.charge_device(reservation, device_us, self._clock())
        # Where the request is to end now, its settlement saves.
        if over is None and self._ledger.needs_saving:
            try:
                await self._save()
            except BaseException:
                self._ledger.charge_device(reservation, -device_us, self._clock())
                raise
        return over

    async def renew(self, reservations: Iterable[Reservation] | None = None) -> list[Reservation]:
        """Renews the leases of these, else of all live reservations, as a task does. Returns those that had ended."""
        lost = self._ledger.renew(self._leases if reservations is None else reservations, self._clock())
        for reservation in lost:
            self._leases.discard(reservation)
        return lost

    async def remaining(self, scopes: Sequence[Scope]) -> tuple[Remaining, ...]:
        """What every limit of these scopes has left."""
        return self._ledger.remaining(scopes, self._clock())

    async def _save(self) -> None:
        """Saves what is not covered yet, one at a time: a later record must not be overtaken by an earlier one."""
        async with self._saving:
            records = self._ledger.uncovered()
            if records:
                await self._write(records)
            self._ledger.mark_covered(records)

    async def _write(self, records: Sequence[BudgetRecord]) -> None:
        if self._store is None or not records:
            return
        try:
            await self._store.save_budgets(records)
        except Exception as error:
            unavailable = _unavailable("budgets cannot be kept", error)
            if not self._failing:
                _LOG.error("calls that cost are refused: %s", unavailable)
            self._failing = True
            raise unavailable from error
        self._failing = False


def _unavailable(what: str, error: Exception) -> LedgerUnavailableError:
    reason = str(error) if isinstance(error, AiriError) else f"their store fails with {type(error).__name__}"
    return LedgerUnavailableError(f"{what}: {reason}")
