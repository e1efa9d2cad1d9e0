"""The text of one completion as it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from airi.text._detokenizer import Detokenizer
from airi.text._stops import StopChecker, StopMatch

__all__ = ["TextStream"]


class TextStream:
    """Tokens in, text out: whole characters, nothing that may still become a stop string.

    After a stop string has been found, `stopped` names it and nothing more comes out.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        keep_offsets: bool = False,
        may_end: Callable[[str], bool] | None = None,
    ) -> None:
        """`min_tokens`: a stop string counts only from this token on. `keep_offsets`: fill `offsets`.

        `may_end`: whether a text may end where it does. A stop string cuts the text no earlier than that, and bytes at
        its end that make no character are left out.
        """
        self.stopped: str | None = None
        """The stop string that ended the text, None while there is none."""
        self.num_tokens = 0
        """Tokens pushed; those that came after the stop string in the same push are not counted."""
        self.num_characters = 0
        """Characters handed out so far."""
        self.offsets: list[int] = []
        """Where in the text each token begins, in characters; kept where asked for."""
        self.num_decoded = 0
        """Characters decoded so far, those held back too; kept with `offsets`."""
        self.is_cut = False
        """Whether the text has ended before its tokens do."""
        self._given: list[str] = []
        """What was handed out, where `may_end` is to be asked."""
        self._may_end = may_end
        self._detokenizer = detokenizer
        self._checker = StopChecker(stop) if stop else None
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._keep_offsets = keep_offsets

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; returns the text that is now certain."""
        if self.stopped is not None:
            return ""
        text = self._push(token_ids)
        if self._may_end is not None:
            self._given.append(text)
        return text

    def _push(self, token_ids: Sequence[int]) -> str:
        if self._checker is None:
            self.num_tokens += len(token_ids)
            text = self._decode(token_ids)
            self.num_characters += len(text)
            return text
        free = self._min_tokens - 1 - self.num_tokens
        if free <= 0:
            return self._push_checked(self._checker, token_ids)
        text = self._push_unchecked(self._checker, token_ids[:free])
        return text + self._push_checked(self._checker, token_ids[free:])

    def finish(self) -> str:
        """The rest of the text, at the end of the completion. Nothing may be pushed afterwards."""
        if self.stopped is not None:
            return ""
        text = self._detokenizer.finish()
        if self._may_end is not None and text:
            text, self.is_cut = "", True
        if self._checker is not None:
            text, match = self._checker.push(text, match=self.num_tokens >= self._min_tokens)
            text = self._cut("", text, match) if match else text + self._checker.finish()
        self.num_characters += len(text)
        if self._may_end is not None:
            self._given.append(text)
        return text

    @property
    def text(self) -> str:
        """All that was handed out; kept where there is a `may_end`."""
        return "".join(self._given)

    @property
    def num_visible_tokens(self) -> int:
        """How many tokens begin before the end of the text handed out (needs `keep_offsets`)."""
        count = len(self.offsets)
        while count and self.stopped is not None and self.offsets[count - 1] >= self.num_characters:
            count -= 1
        return count

    def _push_unchecked(self, checker: StopChecker, token_ids: Sequence[int]) -> str:
        self.num_tokens += len(token_ids)
        text, _ = checker.push(self._decode(token_ids), match=False)
        self.num_characters += len(text)
        return text

    def _push_checked(self, checker: StopChecker, token_ids: Sequence[int]) -> str:
        # Token by token, so that a stop string inside a push says after which token it was complete.
        text = ""
        for token_id in token_ids:
            self.num_tokens += 1
            ready, match = checker.push(self._decode((token_id,)))
            if match is not None:
                text += self._cut(text, ready, match)
                break
            text += ready
        self.num_characters += len(text)
        return text

    def _cut(self, before: str, text: str, match: StopMatch) -> str:
        """What is left of the text that a stop string ends, behind `before` of the same push."""
        self.stopped, self.is_cut = match.stop, True
        end = len(text) if self._include_stop else match.start
        if self._may_end is not None and self._checker is not None:
            text += self._checker.rest
            while end < len(text) and not self._may_end(self.text + before + text[:end]):
                end += 1
        return text[:end]

    def _decode(self, token_ids: Sequence[int]) -> str:
        if not self._keep_offsets:
            return self._detokenizer.push(token_ids)
        text, offsets = self._detokenizer.push_offsets(token_ids)
        self.offsets.extend([self.num_decoded + offset for offset in offsets])
        self.num_decoded += len(text)
        return text
