"""Which tokens the rows of a step with rules may take, found out while the model runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.constraints.rules import TokenRules

if TYPE_CHECKING:
    from llguidance import LLExecutor

__all__ = ["MaskFiller", "mask_words"]


_MAX_THREADS = 8
_FEW = 4
"""Rows without a form whose masks are made at once: to hand them over would take as long."""


def mask_words(vocab_size: int) -> int:
    """uint32 words of a mask: bit i % 32 of word i // 32 says whether token i is allowed."""
    return -(-vocab_size // 32)


class MaskFiller:
    """Computes masks in a thread of its own, those of a step together and without the interpreter's lock.

    *Thread safety*: none. *Invariant*: at most one step's masks are being computed.
    """

    def __init__(self, vocab_size: int, max_rows: int) -> None:
        """Takes memory and threads when the first request needs them."""
        self._vocab_size = vocab_size
        self._max_rows = max_rows
        self._masks: NDArray[np.uint32] | None = None
        self._executor: LLExecutor | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[list[bool]] | None = None

    def begin(self, rules: Sequence[TokenRules], draws: Sequence[int]) -> None:
        """Starts on the masks of these requests, which have so many tokens each."""
        if self._running is not None:
            self._running.exception()  # of a step that failed; its matchers are not to be touched meanwhile
        if len(rules) <= _FEW and all(each.matcher is None for each in rules):
            self._running = Future()
            self._running.set_result(self._fill(rules, draws))
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="airi-masks")
        self._running = self._thread.submit(self._fill, rules, draws)

    def wait(self) -> tuple[list[bool], NDArray[np.uint32]]:
        """Of what `begin` was given last, whether each mask could be made, and all of them: [n, words]."""
        if self._running is None:
            raise RuntimeError("no masks were begun")
        running, self._running = self._running, None
        made = running.result()
        return made, self._buffer()[: len(made)]

    def _buffer(self) -> NDArray[np.uint32]:
        """Masks of all rows, and one that rows use while theirs is made."""
        if self._masks is None:
            self._masks = np.zeros((self._max_rows + 1, mask_words(self._vocab_size)), np.uint32)
        return self._masks

    def _fill(self, rules: Sequence[TokenRules], draws: Sequence[int]) -> list[bool]:
        masks = self._buffer()
        could = [each.catch_up(draw) for each, draw in zip(rules, draws, strict=True)]
        matchers = [(each.matcher, row) for row, each in enumerate(rules) if each.matcher is not None]
        if matchers:
            self._matching().unsafe_compute_mask_ptr(
                matchers, masks.ctypes.data, masks.strides[0], len(masks)
            )
        return [
            could[row] and each.finish_mask(masks[row], draw, masks[-1])
            for row, (each, draw) in enumerate(zip(rules, draws, strict=True))
        ]

    def _matching(self) -> LLExecutor:
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0))))
        return self._executor
