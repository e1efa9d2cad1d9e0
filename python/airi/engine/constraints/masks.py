"""Which tokens the constrained rows of a step may take, found out while the model runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.constraints.constraint import Constraint

if TYPE_CHECKING:
    from llguidance import LLExecutor

__all__ = ["MaskFiller", "mask_words"]


_MAX_THREADS = 8


def mask_words(vocab_size: int) -> int:
    """uint32 words of a mask: bit i % 32 of word i // 32 says whether token i is allowed."""
    return -(-vocab_size // 32)


class MaskFiller:
    """Computes masks in a thread of its own, those of a step together and without the interpreter's lock.

    *Thread safety*: none. *Invariant*: at most one step's masks are being computed.
    """

    def __init__(self, vocab_size: int, max_rows: int) -> None:
        """Takes memory and threads when the first request needs them."""
        self._shape = max_rows, mask_words(vocab_size)
        self._masks: NDArray[np.uint32] | None = None
        self._executor: LLExecutor | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[list[bool]] | None = None

    def begin(self, constraints: Sequence[Constraint], draws: Sequence[int]) -> None:
        """Starts on the masks of these requests, which have so many tokens each."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="airi-masks")
        if self._running is not None:
            self._running.exception()  # of a step that failed; its matchers are not to be touched meanwhile
        self._running = self._thread.submit(self._fill, constraints, draws)

    def wait(self) -> tuple[list[bool], NDArray[np.uint32]]:
        """Of what `begin` was given last, whether each mask could be made, and all of them: [n, words]."""
        if self._running is None:
            raise RuntimeError("no masks were begun")
        running, self._running = self._running, None
        made = running.result()
        masks, _ = self._buffers()
        return made, masks[: len(made)]

    def _buffers(self) -> tuple[NDArray[np.uint32], LLExecutor]:
        if self._masks is None or self._executor is None:
            from llguidance import LLExecutor

            self._masks = np.zeros(self._shape, np.uint32)
            self._executor = LLExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0))))
        return self._masks, self._executor

    def _fill(self, constraints: Sequence[Constraint], draws: Sequence[int]) -> list[bool]:
        masks, executor = self._buffers()
        taken = [each.catch_up(draw) for each, draw in zip(constraints, draws, strict=True)]
        matchers = [(constraint.matcher, row) for row, constraint in enumerate(constraints)]
        executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.strides[0], len(masks))
        return [
            could and constraint.finish_mask(masks[row], draw)
            for row, (could, constraint, draw) in enumerate(zip(taken, constraints, draws, strict=True))
        ]
