"""What an engine's core remembers of what it did, for whoever asks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi._core.parts import StepTimeModel
from airi.engine.loading import HostedModel
from airi.engine.options import SettledOptions
from airi.observability import explain

__all__ = ["Records"]


class Records(ABC):
    """Decisions, KV events and step times of an engine. Any thread may read them."""

    options: SettledOptions
    _runtime: _core.Runtime

    @abstractmethod
    def find_model(self, name: str | int) -> HostedModel:
        """A model by name, alias or index; raises ModelNotFoundError."""

    def explain(self, request_id: int) -> list[str]:
        """What was decided about a request and why, one line each, oldest first; also of one that has ended.

        Empty where the last `EngineOptions.decision_records` decisions do not name it. Any thread may call it.
        """
        records, _, missed = self._runtime.read_decisions(0, max(1, 2 * self.options.decision_records))
        return explain(records, request_id, missed=missed)

    def read_decisions(self, cursor: int, limit: int = 4096) -> tuple[NDArray[np.void], int, int]:
        """(decision records from the cursor on, cursor to read on from, how many were overwritten unread).

        Columns: `_core.Runtime.read_decisions`. The first cursor is 0. Any thread may call it.
        """
        return self._runtime.read_decisions(cursor, limit)

    def read_kv_events(self, cursor: int, limit: int = 4096) -> tuple[NDArray[np.void], int, int]:
        """As `read_decisions`, of blocks stored in device, host or disk and removed from there.

        Columns: `_core.Runtime.read_kv_events`.
        """
        return self._runtime.read_kv_events(cursor, limit)

    def kv_snapshot(self, model: str | int) -> tuple[NDArray[np.void], int]:
        """(a stored event per tier for every hash that it holds of a model, cursor of the next event)."""
        return self._runtime.kv_snapshot(self.find_model(model).index)

    def check_invariants(self) -> None:
        """Raises InternalError naming the first broken invariant of the core. Slow; for tests."""
        self._runtime.check_invariants()

    def step_time(self, model: str | int) -> StepTimeModel:
        """What the core has learnt of how long a model's steps take; it goes on learning."""
        return self._runtime.step_time(self.find_model(model).index)
