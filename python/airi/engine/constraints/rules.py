"""What the tokens of one request must keep to: a form of its text, forbidden texts, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.constraints.constraint import Constraint, clear_bits
from airi.engine.constraints.forbidden import ForbiddenWalk
from airi.errors import ExecutionError

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["TokenRules"]


@dataclass(slots=True, kw_only=True, eq=False)
class TokenRules:
    """The rules of one request, and where its text stands in them.

    *Thread safety*: none; whoever computes its mask owns it until that is done. *Invariant*: no token is taken that
    the mask did not allow.
    """

    form: Constraint | None = None
    walk: ForbiddenWalk | None = None
    stop_ids: NDArray[np.int32]
    """What ends the request."""
    min_tokens: int
    is_exhausted: bool = False
    """Whether the request cannot go on because the forbidden texts have left no token."""
    _failure: str | None = None

    @property
    def failure(self) -> str | None:
        """Why the request cannot go on otherwise."""
        return self._failure or (None if self.form is None else self.form.failure)

    @property
    def matcher(self) -> LLMatcher | None:
        """What fills the mask first, where the text has a form."""
        return None if self.form is None else self.form.matcher

    def push(self, draw: int, token: int, mask: NDArray[np.uint32]) -> None:
        """A token was sampled under a mask, after `draw` others; ExecutionError for one that no text may have."""
        if self.form is not None:
            self.form.push(draw, token, mask)
        if self.walk is not None and not self.walk.push(draw, token):
            self._failure = "a token was sampled that completes a forbidden text"
            raise ExecutionError(self._failure)

    def catch_up(self, draw: int) -> bool:
        """Whether the form stands behind `draw` tokens; to be called before its matcher fills a mask."""
        return self.form is None or self.form.catch_up(draw)

    def finish_mask(self, mask: NDArray[np.uint32], draw: int, scratch: NDArray[np.uint32]) -> bool:
        """Makes a mask, which the matcher has filled where there is one, one of this request.

        False where the request cannot go on.
        """
        form, walk, self.is_exhausted = self.form, self.walk, False
        if walk is None:
            return form is None or form.finish_mask(mask, draw)
        allowed = mask if form is None else scratch
        banned = walk.allow(allowed, draw)
        if banned is None:
            self._failure = "it is not known where the text stands among the forbidden ones"
            return False
        if form is None:
            if draw < self.min_tokens:
                clear_bits(mask, self.stop_ids)
                banned += len(self.stop_ids)
            self.is_exhausted = banned >= walk.vocab_size and not _any(mask, walk.vocab_size)
            return not self.is_exhausted
        return self._join(form, mask, allowed, draw)

    def _join(
        self, form: Constraint, mask: NDArray[np.uint32], allowed: NDArray[np.uint32], draw: int
    ) -> bool:
        could = bool(mask.any())
        np.bitwise_and(mask, allowed, out=mask)
        form.finish_mask(mask, draw)  # allows ends, to which min_tokens yields where nothing else is left
        if form.failure is not None:
            return False
        np.bitwise_and(mask, allowed, out=mask)
        self.is_exhausted = could and not mask.any()
        return bool(mask.any())

    def close(self) -> None:
        """The request has ended."""
        if self.form is not None:
            self.form.close()


def _any(mask: NDArray[np.uint32], size: int) -> bool:
    """Whether a mask allows any of so many tokens."""
    return bool(np.unpackbits(mask.view(np.uint8), count=size, bitorder="little").any())
