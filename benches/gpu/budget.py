"""A suite ends in time: what no longer fits is left out and named."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Seconds from its construction on. *Thread safety*: only reads."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if seconds <= 0:
            raise ValueError(f"seconds is {seconds}, accepted is more than 0")
        self._clock = clock
        self._end = clock() + seconds
        self._start = clock()

    @property
    def spent(self) -> float:
        return self._clock() - self._start

    @property
    def left(self) -> float:
        """Never negative."""
        return max(0.0, self._end - self._clock())

    def allows(self, seconds: float) -> bool:
        """Whether something that takes about so long still fits."""
        return seconds <= self.left
