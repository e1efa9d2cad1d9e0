"""A choice whose text passes content rules before anybody sees it."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airi.gateway.choice import Choice, Piece
from airi.gateway.findings import Findings
from airi.gateway.json_answers import JsonAnswer, JsonFilter
from airi.policy.content import ContentAction, ContentEvent, ContentRules, Filtered

if TYPE_CHECKING:
    from airi.gateway.content import CallContent
    from airi.gateway.metrics import ChoiceTimer
    from airi.text import TextStream, Tokenizer
    from airi.transport import GenerateRequest, TokenLogprobs

__all__ = ["FilteredChoice"]

_NEVER = 1 << 62  # bytes
_decoder = codecs.getincrementaldecoder("utf-8")


class FilteredChoice(Choice):
    """A choice of what its rules let pass. A match that is blocked ends it with `content_filter`.

    Stop strings are found before the rules see the text, calls of tools behind them.
    *Invariant*: no piece holds text that is replaced or blocked, or logprobs of a token that reaches into such text.
    """

    __slots__ = ("_content", "_filter", "_found", "_trail")

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        text: TextStream,
        timer: ChoiceTimer,
        content: CallContent,
        rules: ContentRules,
        json: JsonAnswer | None = None,
    ) -> None:
        """`json`: where JSON stands in the text."""
        super().__init__(index, request, text, timer)
        self._content = content
        self._filter = rules.filter() if json is None else JsonFilter(rules, json)
        self.findings = self._found = Findings()
        self._trail: _Trail | None = None
        if self.params.logprobs is not None:
            self._trail = _Trail(content.model.tokenizer, text)

    def _take(self, text: str, pieces: list[Piece]) -> None:
        self._pass(text, self._filter.push(text), pieces)

    def _finish(self, reason: str, pieces: list[Piece]) -> None:
        self.finish_reason = reason
        self._take(self._text.finish(), pieces)
        self._pass("", self._filter.finish(), pieces, ended=True)

    def _pass(self, text: str, passed: Filtered, pieces: list[Piece], *, ended: bool = False) -> None:
        if passed.events:
            self._content.found("output", f"choices[{self.index}]", passed.events, self._found)
        if self._filter.blocked is not None:
            self.finish_reason = "content_filter"
        if self._trail is None:
            if passed.text:
                pieces.append(Piece(passed.text, [], []))
            return
        self._trail.add(text, passed.events)
        entries, offsets = self._trail.take(self._logprobs, self._filter.passed_bytes, ended=ended)
        if passed.text or entries:
            pieces.append(Piece(passed.text, entries, offsets))


class _Trail:
    """Which tokens' entries may go out with what passes, and where in it their tokens begin.

    An entry goes out once all the text of its token has passed: before, a match may begin in the middle of it. A token
    that ends inside a character reaches into that character.
    """

    def __init__(self, tokenizer: Tokenizer, stream: TextStream) -> None:
        self._tokenizer = tokenizer
        self._stream = stream
        self._text = ""  # what came in, but for its first `_cut` characters
        self._cut = 0
        self._next = 0  # the first token whose entry has not gone out
        self._decode = _decoder("replace")  # over the bytes of tokens before it
        self._at = (0, 0)  # where it begins: characters, bytes
        self._gone: deque[tuple[int, int, int]] = deque()
        """What is replaced or blocked: start, end, characters more than before. Behind each other, by their starts."""
        self._covered = 0
        self._shift = 0  # characters by which what passed is longer than what came in, before `_at`

    def add(self, text: str, events: Sequence[ContentEvent]) -> None:
        """Text that came in, and what its rules found."""
        self._text += text
        data = self._text.encode("utf-8", "surrogatepass") if events else b""
        _, first = self._at
        for event in events:
            if event.action is ContentAction.BLOCK:
                self._gone.append((event.start, _NEVER, 0))
            elif event.action is ContentAction.REDACT:
                new = len(event.replacement) if event.start >= self._covered else 0
                start = max(event.start, self._covered)
                self._covered = max(event.end, self._covered)
                old = len(data[start - first : self._covered - first].decode("utf-8", "surrogatepass"))
                self._gone.append((start, self._covered, new - old))

    def take(
        self, entries: list[TokenLogprobs], passed: int, *, ended: bool
    ) -> tuple[list[TokenLogprobs], list[int]]:
        """The entries that may go out now that `passed` bytes are decided, and their offsets in characters."""
        taken: list[TokenLogprobs] = []
        starts: list[int] = []
        offsets = self._stream.offsets
        count = self._stream.num_visible_tokens if ended else len(offsets)
        while self._next < count:
            entry = entries[self._next]
            last = self._next + 1 == len(offsets)
            start, start_byte = self._place(offsets[self._next])
            end = self._stream.num_decoded if last else offsets[self._next + 1]
            state = self._decode.getstate()
            self._decode.decode(self._tokenizer.token_bytes(entry.token))
            end += bool(self._decode.getstate()[0])
            _, end_byte = self._place(end)
            if not ended and (end > self._cut + len(self._text) or end_byte > passed):
                self._decode.setstate(state)
                break
            self._next += 1
            self._at = start, start_byte
            while self._gone and self._gone[0][1] <= start_byte:
                self._shift += self._gone.popleft()[2]
            if not self._gone or self._gone[0][0] >= end_byte:
                taken.append(entry)
                starts.append(start + self._shift)
        characters, _ = self._at
        self._text, self._cut = self._text[characters - self._cut :], characters
        return taken, starts

    def _place(self, character: int) -> tuple[int, int]:
        """A character's number, and the byte it begins at."""
        characters, bytes_ = self._at
        between = self._text[characters - self._cut : character - self._cut]
        return character, bytes_ + len(between.encode("utf-8", "surrogatepass"))
