"""Who may use how much: requests, tokens, parallel requests, money and device time.

Reserved at admission for the most that a request may use, settled when it has ended. The README of this folder
says what is exact about it, and what a restart and Redis' settings mean.
"""

from __future__ import annotations

from airi.policy.ledger.budgets import BudgetRecord, BudgetStore
from airi.policy.ledger.headers import ratelimit_headers
from airi.policy.ledger.limits import Budget, Demand, LimitName, Limits, LimitTable, Scope
from airi.policy.ledger.local import LocalLedger
from airi.policy.ledger.outcome import Refused, Remaining, Reservation, Usage
from airi.policy.ledger.process import ProcessLedger
from airi.policy.ledger.protocol import Ledger
from airi.policy.ledger.script import connect
from airi.policy.ledger.shared import RedisLedger

__all__ = [
    "Budget",
    "BudgetRecord",
    "BudgetStore",
    "Demand",
    "Ledger",
    "LimitName",
    "LimitTable",
    "Limits",
    "LocalLedger",
    "ProcessLedger",
    "RedisLedger",
    "Refused",
    "Remaining",
    "Reservation",
    "Scope",
    "Usage",
    "connect",
    "ratelimit_headers",
]
