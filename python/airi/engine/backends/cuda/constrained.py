"""Rows of an enqueued step that have rules: these are told of what they get as soon as it is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends.cuda.batch import StagedArrays
from airi.engine.backends.cuda.device import Event
from airi.engine.constraints import TokenRules
from airi.errors import ExecutionError

__all__ = ["ConstrainedRows"]

logger = logging.getLogger(__name__)


class ConstrainedRows:
    """Those of one step. Their tokens are taken once: by the next step that needs them, or at this one's end.

    *Thread safety*: none.
    """

    def __init__(
        self,
        rows: Sequence[int],
        rules: Sequence[TokenRules],
        draws: Sequence[int],
        masks: NDArray[np.uint32],
        failed: set[int],
    ) -> None:
        """`rows` among those that sample, with their masks [n, words]; `failed` gets rows, and has some already."""
        self._rows = rows
        self._rules = rules
        self._draws = draws
        self._masks = masks
        self._failed = failed
        self._arrays: StagedArrays | None = None
        self._sampled: Event | None = None

    def follow(self, arrays: StagedArrays, sampled: Event) -> None:
        """Tokens will lie in the set's results when `sampled` is done."""
        self._arrays, self._sampled = arrays, sampled

    def take(self, wait: Callable[[Event], None] = lambda _: None) -> None:
        """Tells the rules what their rows got, after `wait` for it where that is not known to have come."""
        arrays, sampled = self._arrays, self._sampled
        if arrays is None or sampled is None:
            return
        wait(sampled)
        self._arrays = self._sampled = None
        columns = (self._rows, self._rules, self._draws, self._masks)
        for row, rules, draw, mask in zip(*columns, strict=True):
            if row in self._failed or arrays.status[row]:
                continue
            try:
                rules.push(draw, int(arrays.sampled[row]), mask)
            except ExecutionError:
                logger.exception("a text has left its rules")
                self._failed.add(row)
