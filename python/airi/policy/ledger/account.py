"""What the in-process ledger keeps of one scope."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, MutableMapping
from itertools import islice

from airi.policy.ledger.budgets import BudgetRecord
from airi.policy.ledger.limits import MICRO, WINDOW_SLOTS, Budget, Demand, LimitName, Limits, Scope
from airi.policy.ledger.outcome import Usage, demanded

ENDLESS = 2**63
"""Where there is no limit: more than is ever counted."""

_HEADROOM = 128
"""A budget is saved in about so many portions: it loses at most one of them in a crash."""

_COLUMNS = {
    LimitName.REQUESTS: (1,),
    LimitName.TOKENS: (2, 3),
    LimitName.INPUT_TOKENS: (2,),
    LimitName.OUTPUT_TOKENS: (3,),
}

Meters = MutableMapping[tuple[Scope, LimitName, int | None], "Meter"]


class Meter:
    """What one scope spends of one budget within a period.

    Invariant: where it is durable, a saved record says at least `covered` for the current period.
    """

    __slots__ = ("amount", "budget", "covered", "durable", "ends", "index", "name", "scope", "spent")

    def __init__(self, record: BudgetRecord, *, durable: bool) -> None:
        self.scope, self.name = record.scope, record.name
        self.durable = durable
        self.index, self.spent = record.period_index, record.spent_micro
        self.covered = record.spent_micro if durable else ENDLESS
        self.set_budget(Budget(amount_micro=0, period_s=record.period_s))

    def set_budget(self, budget: Budget) -> None:
        """Another amount for the same period."""
        self.budget = budget
        self.amount = budget.amount_micro
        self._set_end()

    def _set_end(self) -> None:
        end = self.budget.period_end(self.index)
        self.ends = ENDLESS if end is None else end

    def roll(self, now: int) -> None:
        """Begins the period of `now` if the current one has ended."""
        if now < self.ends:
            return
        self.index = self.budget.period_index(now)
        self.spent = 0
        self.covered = 0 if self.durable else ENDLESS
        self._set_end()

    def bound(self) -> int:
        """What to save as spent: some room above, but not above the budget."""
        return max(self.spent, min(self.amount, self.spent + self.amount // _HEADROOM))

    def record(self, spent: int) -> BudgetRecord:
        """That much as spent in the current period."""
        return BudgetRecord(
            scope=self.scope,
            name=self.name,
            period_s=self.budget.period_s,
            period_index=self.index,
            spent_micro=spent,
        )


class Account:
    """The counts of one scope: sums over the window, live reservations, and meters of its budgets.

    A cell is [second, requests, input tokens, output tokens]; there is one for each second with use.

    Invariant: the sums are those of the cells, and each cell is of the last 61 seconds up to `slot`.
    """

    __slots__ = (
        "cells",
        "device",
        "input_tokens",
        "last_request_slot",
        "last_token_slot",
        "leases",
        "max_input",
        "max_output",
        "max_parallel",
        "max_requests",
        "max_tokens",
        "money",
        "output_tokens",
        "requests",
        "scope",
        "slot",
    )

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.slot = 0
        self.requests = self.input_tokens = self.output_tokens = 0
        self.last_request_slot = self.last_token_slot = 0
        self.cells: deque[list[int]] = deque()
        self.leases: dict[str, None] = {}  # the first to expire comes first
        self.money: Meter | None = None
        self.device: Meter | None = None

    def set_limits(self, limits: Limits, meters: Meters, *, durable: bool) -> None:
        """Other limits for the same counts."""
        self.max_requests = _or_endless(limits.requests_per_minute)
        self.max_tokens = _or_endless(limits.tokens_per_minute)
        self.max_input = _or_endless(limits.input_tokens_per_minute)
        self.max_output = _or_endless(limits.output_tokens_per_minute)
        self.max_parallel = _or_endless(limits.max_parallel_requests)
        self.money = self._meter(LimitName.BUDGET, limits.budget, meters, durable=durable)
        self.device = self._meter(LimitName.DEVICE, limits.device_seconds, meters, durable=durable)

    def _meter(
        self, name: LimitName, budget: Budget | None, meters: Meters, *, durable: bool
    ) -> Meter | None:
        if budget is None:
            return None
        key = self.scope, name, budget.period_s
        if key not in meters:
            zero = BudgetRecord(
                scope=self.scope, name=name, period_s=budget.period_s, period_index=0, spent_micro=0
            )
            meters[key] = Meter(zero, durable=durable)
        meters[key].set_budget(budget)
        return meters[key]

    def move_to(self, slot: int, now: int) -> None:
        """Lets go of what has left the window, and begins the period of `now`."""
        if slot != self.slot:
            self.slot = slot
            oldest = slot - WINDOW_SLOTS
            cells = self.cells
            while cells and cells[0][0] < oldest:
                _, requests, inputs, outputs = cells.popleft()
                self.requests -= requests
                self.input_tokens -= inputs
                self.output_tokens -= outputs
        if self.money is not None and now >= self.money.ends:
            self.money.roll(now)
        if self.device is not None and now >= self.device.ends:
            self.device.roll(now)

    def fits(self, requests: int, inputs: int, outputs: int, cost: int, parallel: int) -> bool:
        """Whether every limit has room."""
        money, device = self.money, self.device
        input_tokens = self.input_tokens + inputs
        output_tokens = self.output_tokens + outputs
        return (
            self.requests + requests <= self.max_requests
            and input_tokens + output_tokens <= self.max_tokens
            and input_tokens <= self.max_input
            and output_tokens <= self.max_output
            and len(self.leases) + parallel <= self.max_parallel
            and (money is None or money.spent + cost <= money.amount)
            and (device is None or device.spent < device.amount)
        )

    def charge(
        self, slot: int, requests: int, inputs: int, outputs: int, cost: int
    ) -> tuple[Account, list[int], Meter | None, int]:
        """Adds to the current second and period; returns where, so that it can be given back."""
        cells = self.cells
        if cells and cells[-1][0] == slot:
            cell = cells[-1]
            cell[1] += requests
            cell[2] += inputs
            cell[3] += outputs
        else:
            cell = [slot, requests, inputs, outputs]
            cells.append(cell)
        self.requests += requests
        self.input_tokens += inputs
        self.output_tokens += outputs
        if requests:
            self.last_request_slot = slot
        if inputs or outputs:
            self.last_token_slot = slot
        money = self.money
        if money is None:
            return self, cell, None, 0
        money.spent += cost
        return self, cell, money, money.index

    def give_back(self, cell: list[int], requests: int, inputs: int, outputs: int) -> None:
        """Takes from the second of a reservation, as long as the window still has it."""
        if cell[0] < self.slot - WINDOW_SLOTS:
            return
        cell[1] -= requests
        cell[2] -= inputs
        cell[3] -= outputs
        self.requests -= requests
        self.input_tokens -= inputs
        self.output_tokens -= outputs

    def usage(self) -> Usage:
        """The counts of the moment moved to."""
        return Usage(
            self.requests,
            self.input_tokens,
            self.output_tokens,
            len(self.leases),
            0 if self.money is None else self.money.spent,
            0 if self.device is None else self.device.spent,
            self.last_request_slot,
            self.last_token_slot,
        )

    def wait(self, name: LimitName, demand: Demand, now: int, expires: Callable[[str], int]) -> int | None:
        """Microseconds until this limit has room if nothing else happens; 0: now; None: never."""
        amount = demanded(demand, name)
        if name in _COLUMNS:
            return self._window_wait(name, amount, now)
        if name is LimitName.PARALLEL:
            excess = len(self.leases) + amount - self.max_parallel
            if excess <= 0:
                return 0
            if amount > self.max_parallel:
                return None
            last = next(islice(self.leases, excess - 1, None))
            return expires(last) - now
        meter = self.money if name is LimitName.BUDGET else self.device
        if meter is None or meter.spent + amount <= meter.amount:
            return 0
        if amount > meter.amount or meter.ends == ENDLESS:
            return None
        return meter.ends - now

    def check_invariants(self) -> None:
        """Raises RuntimeError naming what is broken. O(61)."""
        sums = [sum(cell[column] for cell in self.cells) for column in (1, 2, 3)]
        if sums != [self.requests, self.input_tokens, self.output_tokens]:
            raise RuntimeError(f"the window of {self.scope} does not add up")
        if any(min(cell) < 0 for cell in self.cells):
            raise RuntimeError(f"the window of {self.scope} holds less than nothing")
        if any(meter is not None and meter.spent < 0 for meter in (self.money, self.device)):
            raise RuntimeError(f"{self.scope} has spent less than nothing")

    def _window_wait(self, name: LimitName, amount: int, now: int) -> int | None:
        columns = _COLUMNS[name]
        limit = {
            LimitName.REQUESTS: self.max_requests,
            LimitName.TOKENS: self.max_tokens,
            LimitName.INPUT_TOKENS: self.max_input,
            LimitName.OUTPUT_TOKENS: self.max_output,
        }[name]
        if amount > limit:
            return None
        excess = sum(cell[column] for cell in self.cells for column in columns) + amount - limit
        if excess <= 0:
            return 0
        for cell in self.cells:
            excess -= sum(cell[column] for column in columns)
            if excess <= 0:
                return (cell[0] + WINDOW_SLOTS + 1) * MICRO - now
        raise RuntimeError(f"the window of {self.scope} holds less than its sum")


def _or_endless(limit: int | None) -> int:
    return ENDLESS if limit is None else limit
