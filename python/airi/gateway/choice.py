"""One completion of a request: the engine's tokens become pieces of text, until it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from airi.gateway.certificates import Proof
from airi.gateway.metrics import ChoiceTimer
from airi.text import TextStream
from airi.transport import GenerateRequest, Output, TokenLogprobs

if TYPE_CHECKING:
    from airi.gateway.certificates import Certificate
    from airi.gateway.findings import Findings, Results

__all__ = ["Choice", "Piece"]


class Piece(NamedTuple):
    """Text that is certain, with the logprobs of the tokens that begin in it (and where they begin)."""

    text: str
    logprobs: list[TokenLogprobs]
    offsets: list[int]


class Choice:
    """One completion as it grows. `finish_reason` is set with the last piece.

    *Invariant*: the texts of all pieces joined are the completion's text; nothing comes after the finish.
    """

    __slots__ = (
        "_logprobs",
        "_made",
        "_proof",
        "_shown",
        "_text",
        "_timer",
        "cached_tokens",
        "completion_tokens",
        "findings",
        "finish_reason",
        "index",
        "params",
        "prompt_logprobs",
        "prompt_tokens",
        "request_id",
        "shows_text",
    )

    def __init__(self, index: int, request: GenerateRequest, text: TextStream, timer: ChoiceTimer) -> None:
        self.index = index
        self.request_id = request.request_id
        self.params = request.params
        self.prompt_tokens = request.num_tokens
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self.findings: Findings | None = None
        """What content rules found."""
        self.shows_text = True
        """Whether the client is shown the text, and not only calls of tools that were made of it."""
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._proof: Proof | None = None
        self._text = text
        self._timer = timer
        self._logprobs: list[TokenLogprobs] = []
        self._made: list[int] | None = None
        self._shown = 0

    @property
    def filter_results(self) -> Results | None:
        """What content rules found that the client is told."""
        return None if self.findings is None else self.findings.told

    @property
    def certificate(self) -> Certificate | None:
        """Of the text that has gone out, once it has ended; where forbidden texts hold."""
        return None if self._proof is None else self._proof.certificate(shows_text=self.shows_text)

    @property
    def first_token_at(self) -> float | None:
        """When its first token was ready; None before."""
        return self._timer.first

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; None where none did."""
        return self._text.stopped

    @property
    def tokens(self) -> list[int]:
        """Its tokens up to its end, with the one that ended it, where `keep_tokens` was said; else none."""
        return (self._made or [])[: self.completion_tokens]

    def keep_tokens(self) -> None:
        """Has `tokens` give what the model made."""
        self._made = []

    def prove_with(self, proof: Proof) -> None:
        """Has the choice end with a certificate."""
        self._proof = proof

    def show_instead(self, pieces: list[Piece]) -> None:
        """These pieces go out in place of all others."""
        if self._proof is not None:
            self._proof.show_instead(pieces)

    def advance(self, output: Output, arrived: float, at: float, *, per_token: bool) -> list[Piece]:
        """What `output` adds; `per_token` cuts it into one piece per token that completes some text."""
        tokens = output.tokens
        if tokens:
            self._timer.tokens(len(tokens), at, arrived)
            if self._made is not None:
                self._made.extend(tokens)
        if output.num_prompt_tokens:
            self.cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        hidden = output.stop_token is not None and not self.params.include_stop_str_in_output
        visible = tokens[:-1] if hidden and tokens else tokens
        if output.logprobs is not None:
            self._logprobs.extend(output.logprobs[: len(visible)])
        pieces: list[Piece] = []
        if per_token and len(visible) > 1:
            for token in visible:
                self._take(self._text.push((token,)), pieces)
        elif visible:
            self._take(self._text.push(visible), pieces)
        self.completion_tokens = self._text.num_tokens + (len(tokens) - len(visible))
        if self._text.stopped is not None:
            self.completion_tokens = self._text.num_tokens
            self._finish("stop", pieces)
        elif output.finish_reason is not None:
            self._finish(output.finish_reason, pieces)
        if self._proof is not None:
            self._proof.add(pieces)
            if self.finish_reason is not None:
                self._proof.end(output.final_state, self.completion_tokens)
        return pieces

    def _take(self, text: str, pieces: list[Piece]) -> None:
        if not text:
            return
        if self.params.logprobs is None:
            pieces.append(Piece(text, [], []))
            return
        end = self._shown
        offsets = self._text.offsets
        while end < len(offsets) and offsets[end] < self._text.num_characters:
            end += 1
        self._show(text, end, pieces)

    def _show(self, text: str, end: int, pieces: list[Piece]) -> None:
        start, self._shown = self._shown, end
        pieces.append(Piece(text, self._logprobs[start:end], self._text.offsets[start:end]))

    def _finish(self, reason: str, pieces: list[Piece]) -> None:
        self.finish_reason = reason
        rest = self._text.finish()
        if self.params.logprobs is None:
            if rest:
                pieces.append(Piece(rest, [], []))
            return
        end = self._text.num_visible_tokens
        if rest or end > self._shown:
            self._show(rest, end, pieces)
