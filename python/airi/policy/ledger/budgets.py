"""Budgets that a restart must not forget: what is stored of them, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from airi.policy.ledger.limits import LimitName, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRecord:
    """What one scope has spent of one budget in one period, or a little more: never less.

    Attributes:
      name: `LimitName.BUDGET` or `LimitName.DEVICE`.
      period_s: The period's length; None for a budget without periods.
      period_index: `Budget.period_index` of the period.
      spent_micro: Millionths of a currency unit, or microseconds.
    """

    scope: Scope
    name: LimitName
    period_s: int | None
    period_index: int
    spent_micro: int


class BudgetStore(Protocol):
    """Keeps one record per (scope, name, period_s): the latest that was saved."""

    async def load_budgets(self, wanted: Sequence[BudgetRecord]) -> Sequence[BudgetRecord]:
        """What was saved of these budgets in these periods; `wanted` say 0. Those never saved may be left out.

        Where one was saved in the next period, by a clock that was ahead of this one, that is it.

        Also asked, for none, by a ledger with other limits alone: one that is another's raises.
        """
        ...

    async def save_budgets(self, records: Sequence[BudgetRecord]) -> None:
        """Replaces those records. When it returns they survive a crash of the machine; raises where they may not."""
        ...
