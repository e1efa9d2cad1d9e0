"""Leaves an upstream alone that fails again and again, and finds out when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import NewType

__all__ = ["CircuitBreaker", "CircuitState", "Permit"]

Permit = NewType("Permit", int)
"""With which a call was let through: how often it had been opened before."""


class CircuitState(StrEnum):
    """Whether calls go through."""

    CLOSED = "closed"
    """All do."""
    OPEN = "open"
    """None does."""
    HALF_OPEN = "half_open"
    """One does; the others wait for what becomes of it, and get the answer of an open circuit."""


class CircuitBreaker:
    """Counts failures in a row. Never calls anything itself.

        closed --failures in a row--> open --open_s later--> half-open --success--> closed
                                       ^-------------failure-----------'

    An answer that has begun makes room for others, but the next failure opens it again: failures in a row end with an
    answer that is whole. What fails or is given up after it was opened, and was let through before, tells nothing new.

    *Thread safety*: none; event loop only. *Invariant*: every permit of `allow` comes back with one of `succeeded`,
    `failed` and `abandoned`.
    """

    def __init__(self, *, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._open_s, self._clock = failures, open_s, clock
        self._failures = 0
        self._opened_at: float | None = None
        self._is_probing = False
        self.times_opened = 0

    @property
    def state(self) -> CircuitState:
        """What `allow` goes by."""
        if self._opened_at is None:
            return CircuitState.CLOSED
        return CircuitState.HALF_OPEN if self.remaining_s <= 0 else CircuitState.OPEN

    @property
    def remaining_s(self) -> float:
        """Seconds until an open circuit lets a call through."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._open_s - self._clock())

    def allow(self) -> Permit | None:
        """A call may be made now; None where not."""
        state = self.state
        if state is CircuitState.OPEN or (state is CircuitState.HALF_OPEN and self._is_probing):
            return None
        self._is_probing = state is CircuitState.HALF_OPEN
        return Permit(self.times_opened)

    def began(self) -> None:
        """An answer has begun."""
        if self._opened_at is not None:
            self._failures, self._opened_at, self._is_probing = self._most - 1, None, False

    def succeeded(self) -> None:
        """A call went well."""
        self._failures, self._opened_at, self._is_probing = 0, None, False

    def failed(self, permit: Permit | None = None) -> None:
        """A call failed, and so may the next one; without a permit something else did, such as a look at its health."""
        if not self._is_news(permit):
            return
        if self._opened_at is None:
            self._failures += 1
            if self._failures < self._most:
                return
        elif not self._is_probing:
            return
        self._opened_at, self._is_probing = self._clock(), False
        self.times_opened += 1

    def abandoned(self, permit: Permit) -> None:
        """A call was given up before it could tell anything."""
        if self._is_news(permit):
            self._is_probing = False

    def _is_news(self, permit: Permit | None) -> bool:
        return permit is None or permit == self.times_opened
