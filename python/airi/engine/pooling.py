"""Runs the core's batches of a model that reads texts whole: vectors and classes instead of tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from airi import _core
from airi.engine.backends import PoolingModel, ProgressCallback, StepInputs
from airi.engine.memory import Arena
from airi.engine.requests import RequestState
from airi.engine.runner import StepArrays, StepResult

__all__ = ["PoolingRunner"]

logger = logging.getLogger(__name__)

_ROW_FAILED = int(_core.RowStatus.FAILED)
_ROW_NAN = int(_core.RowStatus.NAN)


class PoolingRunner:
    """As `ModelRunner`, for what keeps nothing between steps: each row is a whole text, and its last one.

    *Thread safety*: none.
    """

    def __init__(self, index: int, model: PoolingModel) -> None:
        self.index = index
        self.model = model

    @contextmanager
    def bound_to(self, arena: Arena) -> Iterator[None]:
        """Nothing: it uses no arena."""
        yield

    @contextmanager
    def spread_out(self, num_blocks: int) -> Iterator[None]:
        """Nothing: it has no blocks."""
        yield

    def run_apart(self, step: StepInputs) -> None:
        """Runs a step that is not the core's."""
        self.model.pool(step.tokens, step.query_start)

    def place_weights(self, memory: Any) -> None:
        """Raises TypeError: its weights stay where they are."""
        raise TypeError("a model that keeps its weights to itself has a home for them")

    def set_up(self, progress: ProgressCallback | None) -> None:
        """Nothing: it is ready once it is loaded."""

    def refresh(self) -> None:
        """Nothing: it uses no arena."""

    def close(self) -> None:
        """Lets the model go. No step may follow."""
        del self.model

    def take_over(
        self, arrays: StepArrays, *, rows: int, deltas: int, states: Mapping[int, RequestState]
    ) -> None:
        """Nothing: a step says all that it needs."""

    def run(self, arrays: StepArrays, *, rows: int, tokens: int) -> StepResult:
        """Runs a step. A failing model fails the step's rows, never the engine."""
        status = np.zeros(rows, np.uint8)
        vectors = np.zeros((rows, self.model.info.vector_size), np.float32)
        try:
            if rows:
                vectors = self.model.pool(arrays.tokens[:tokens], arrays.query_start[: rows + 1])
            status[~np.isfinite(vectors).all(axis=1)] = _ROW_NAN
        except Exception:
            logger.exception("a step of %d texts and %d tokens failed", rows, tokens)
            status[:] = _ROW_FAILED
        return StepResult(
            model=self.index,
            counts=np.ones(rows, np.int32),
            status=status,
            request_ids=arrays.request_ids[:rows].copy(),
            tokens=np.zeros(rows, np.int32),
            draws=arrays.draw_index[:rows].copy(),
            vectors=vectors,
        )
