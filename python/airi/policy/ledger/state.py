"""Budgets of an in-process ledger in the state that tenants and keys are in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from airi.policy.ledger.budgets import BudgetRecord
from airi.policy.ledger.limits import PERIOD_ANCHOR_S, LimitName, Scope
from airi.state.records import Charge

if TYPE_CHECKING:
    from airi.state import Store


class StateBudgets:
    """A `BudgetStore` over a `Store`, whose charges add up: what is saved is the difference to what was.

    Thread safety: none; one `ProcessLedger` at a time. Two that shared a state would each allow all of a
    limit: from the first limit on, whatever it is of, the state is this one's.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # What the store is known to say: (period, spent) per budget. Forgotten where a write may have failed.
        self._saved: dict[tuple[Scope, LimitName, int | None], tuple[int, int]] = {}

    async def load_budgets(self, wanted: Sequence[BudgetRecord]) -> Sequence[BudgetRecord]:
        """One or two reads per budget. Raises StateError where another server counts in this state."""
        await self._store.own_budgets()
        await self._forget(wanted)
        return [await self._load(record) for record in wanted]

    async def _load(self, record: BudgetRecord) -> BudgetRecord:
        """Of the next period, where that has begun by the clock of who saved last: else it would be spent again."""
        if record.period_s is not None:
            later = replace(record, period_index=record.period_index + 1)
            spent = await self._read(later)
            if spent:
                return replace(later, spent_micro=spent)
        return replace(record, spent_micro=await self._read(record))

    async def save_budgets(self, records: Sequence[BudgetRecord]) -> None:
        """One write for all; where periods have begun, one more that forgets those long past."""
        charges, begun = [], []
        for record in records:
            period, spent = self._saved.get(_key(record), (None, 0))
            if period != record.period_index:
                spent = await self._read(record)
                begun.append(record)
            charges.append(_charge(record, record.spent_micro - spent))
        for record in records:
            self._saved.pop(_key(record), None)
        await self._store.spend(charges)
        for record in records:
            self._saved[_key(record)] = record.period_index, record.spent_micro
        await self._forget(begun)

    async def _forget(self, records: Iterable[BudgetRecord]) -> None:
        """Drops all but this period and the one before: whose clock is behind may still be in that one."""
        places = [_charge(replace(r, period_index=r.period_index - 1), 0) for r in records if r.period_s]
        await self._store.forget_budgets((place.scope, place.period_start) for place in places)

    async def _read(self, record: BudgetRecord) -> int:
        place = _charge(record, 0)
        found = await self._store.budget(place.scope, place.period_start)
        spent = found.device_us if record.name is LimitName.DEVICE else found.spent_micro
        self._saved[_key(record)] = record.period_index, spent
        return spent


def _key(record: BudgetRecord) -> tuple[Scope, LimitName, int | None]:
    return record.scope, record.name, record.period_s


def _charge(record: BudgetRecord, amount: int) -> Charge:
    scope = record.scope
    parts = (scope.tenant, scope.model, scope.priority_class)
    # `*` stands for any: quoted names never have one.
    names = ["*" if part is None else quote(part, safe="") for part in parts]
    name = "/".join((*names, record.name, str(record.period_s or 0)))
    start = 0
    if record.period_s is not None:
        start = record.period_index * record.period_s + PERIOD_ANCHOR_S
    if record.name is LimitName.DEVICE:
        return Charge(scope=name, period_start=start, device_us=amount)
    return Charge(scope=name, period_start=start, micro=amount)
