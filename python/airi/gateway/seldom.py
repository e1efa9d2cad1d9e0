"""Log lines that calls cause, now and then: no client can fill a log with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Final

from airi.gateway.metrics import now

__all__ = ["Seldom"]

_EVERY_S: Final = 60.0


class Seldom:
    """Warns of each kind of trouble once a minute at most; the next line tells how many were left out.

    *Thread safety*: none; event loop only. Kinds are few: they come from a config, not from calls.
    """

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float] = now) -> None:
        self._log, self._clock = log, clock
        self._told: dict[Hashable, tuple[float, int]] = {}

    def warn(self, kind: Hashable, message: str, *args: object) -> bool:
        """Whether the line was written."""
        at, left_out = self._told.get(kind, (-_EVERY_S, 0))
        if self._clock() - at < _EVERY_S:
            self._told[kind] = at, left_out + 1
            return False
        self._told[kind] = self._clock(), 0
        more = f"; {left_out} more like this since the last such line" if left_out else ""
        self._log.warning(f"{message}%s", *args, more)
        return True
