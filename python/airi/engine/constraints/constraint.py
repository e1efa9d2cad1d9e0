"""Where the text of one request stands in its grammar."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.constraints.tokens import TokenTable
from airi.errors import ExecutionError

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["Constraint", "clear_bits"]

logger = logging.getLogger(__name__)

_TOO_COMPLEX = "the form of the text became too complex to follow"


class Constraint:
    """A request's matcher, and the rules for its end.

    An end of sequence may come where the text may end, and nothing but one where it can go no further. Before
    `min_tokens` no stop id may come while there is anything else.

    *Thread safety*: none; whoever computes its mask owns it until that is done.
    *Invariant*: the matcher has taken the request's tokens, but for the last one before its next mask.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        tokens: TokenTable,
        give_back: Callable[[LLMatcher], None],
        *,
        eos_ids: NDArray[np.int32],
        stop_ids: NDArray[np.int32],
        min_tokens: int,
    ) -> None:
        """`eos_ids`: all that the model has; `stop_ids`: what ends this request."""
        self.failure: str | None = None
        """Why the request cannot go on."""
        self._matcher = matcher
        self._give_back = give_back
        self._stop_ids = stop_ids
        self._min_tokens = min_tokens
        special = [token for token in stop_ids.tolist() if token in tokens.special_ids]
        ends = {token for token in stop_ids.tolist() if token in set(eos_ids.tolist())}
        self._closing = np.array(sorted({*special, *ends}), np.int32)
        """Ids that end the request and are allowed where the text may end, and only there."""
        self._never_text = np.array(
            sorted({*eos_ids.tolist(), tokens.eos_id, *self._closing.tolist()}), np.int32
        )
        self._pending: tuple[int, int] | None = None
        self._num_taken = 0
        self._closed_at: int | None = None
        """How many tokens came before the one that ended the request."""

    @property
    def closing_ids(self) -> NDArray[np.int32]:
        """Ids of which one ends the request where the text may end."""
        return self._closing

    @property
    def matcher(self) -> LLMatcher:
        """For masks of several at a time."""
        return self._matcher

    def push(self, draw: int, token: int, mask: NDArray[np.uint32]) -> None:
        """A token was sampled under a mask, after `draw` others; the matcher takes it when the next one is wanted.

        Raises ExecutionError for a token that the mask did not allow: no text may have it.
        """
        if not int(mask[token >> 5]) >> (token & 31) & 1:
            self.failure = "a token was sampled that the form of the text does not allow"
            raise ExecutionError(self.failure)
        self._pending = draw, token

    def catch_up(self, draw: int) -> bool:
        """Has the matcher take what was pushed; whether it now stands behind `draw` tokens.

        A request that was preempted while a step was on its way samples that step's token again.
        """
        pending, self._pending = self._pending, None
        if self._closed_at is not None and self._closed_at >= draw:
            self._closed_at = None
        if self._num_taken > draw:
            self._matcher.rollback(self._num_taken - draw)
            self._num_taken = draw
        if pending is not None and pending[0] == draw - 1 and self._closed_at is None:
            if pending[1] in self._closing:
                self._closed_at = pending[0]
            elif self._matcher.consume_token(pending[1]):
                self._num_taken += 1
        if self._closed_at is None and self._num_taken != draw:
            self.failure = _TOO_COMPLEX
        return self.failure is None

    def finish_mask(self, mask: NDArray[np.uint32], draw: int) -> bool:
        """Makes a mask that the matcher has filled one of this request; False where its grammar has failed.

        `draw`: tokens that the request has.
        """
        matcher = self._matcher
        if matcher.is_error():
            self.failure = _TOO_COMPLEX
            logger.warning(
                "a grammar failed after %d tokens: %s", self._num_taken, _first_line(matcher.get_error())
            )
            return False
        has_ended = self._closed_at is not None
        may_end = has_ended or matcher.is_accepting()
        if has_ended:
            mask[:] = 0
        clear_bits(mask, self._never_text)
        if may_end:
            _set(mask, self._closing)
        if draw < self._min_tokens:
            others = mask.copy()
            clear_bits(others, self._stop_ids)
            if others.any():
                mask[:] = others
        return bool(mask.any())

    def close(self) -> None:
        """The request has ended: its matcher may serve another."""
        if not self._matcher.is_error():
            self._give_back(self._matcher)


def clear_bits(mask: NDArray[np.uint32], ids: NDArray[np.int32]) -> None:
    """Takes tokens from a mask."""
    for token in ids.tolist():
        mask[token >> 5] &= np.uint32(~(1 << (token & 31)) & 0xFFFFFFFF)


def _set(mask: NDArray[np.uint32], ids: NDArray[np.int32]) -> None:
    for token in ids.tolist():
        mask[token >> 5] |= np.uint32(1 << (token & 31))


def _first_line(text: str) -> str:
    return " ".join(text.partition("<state>")[0].split())[:200]
