"""Leaves an upstream alone that fails again and again, and finds out when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

__all__ = ["CircuitBreaker", "CircuitState"]


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

    *Thread safety*: none; event loop only. *Invariant*: every `allow` that was True is followed by one of `succeeded`,
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

    def allow(self) -> bool:
        """Whether a call may be made now."""
        state = self.state
        if state is CircuitState.HALF_OPEN and not self._is_probing:
            self._is_probing = True
            return True
        return state is CircuitState.CLOSED

    def succeeded(self) -> None:
        """A call went well."""
        self._failures, self._opened_at, self._is_probing = 0, None, False

    def failed(self) -> None:
        """A call failed, and so may the next one. Calls that began before it opened do not open it for longer."""
        if self._opened_at is None:
            self._failures += 1
            if self._failures < self._most:
                return
        elif not self._is_probing:
            return
        self._opened_at, self._is_probing = self._clock(), False
        self.times_opened += 1

    def abandoned(self) -> None:
        """A call was given up before it could tell anything."""
        self._is_probing = False
