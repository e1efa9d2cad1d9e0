"""One event of an upstream's stream, chat or completion, as what it adds to the choices."""

from __future__ import annotations

import builtins
from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = ["CallDelta", "Chunk", "ChunkChoice", "TokenLogprob", "TopLogprob", "Usage", "read_chunk"]

_Count = Annotated[int, Meta(ge=0, le=2**40)]


class FunctionDelta(msgspec.Struct):
    """What is added to a call; the name comes whole."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct):
    """A call that begins or goes on."""

    index: _Count = 0
    id: str | None = None
    function: FunctionDelta = msgspec.field(default_factory=FunctionDelta)


class MessageDelta(msgspec.Struct):
    """What is added to a message. What the model thought of it beside is left out."""

    content: str | None = None
    refusal: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: list[CallDelta] | None = None


class TopLogprob(msgspec.Struct):
    """What a token had, or one that might have come in its place."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | None = None

    @property
    def data(self) -> builtins.bytes:
        """Its bytes; those of its text where they are not told."""
        return (
            self.token.encode("utf-8", "surrogatepass") if self.bytes is None else builtins.bytes(self.bytes)
        )


class TokenLogprob(TopLogprob, kw_only=True):
    """What a token of the answer had."""

    top_logprobs: list[TopLogprob] = []


class _Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class ChunkChoice(msgspec.Struct):
    """What is added to a choice."""

    index: _Count = 0
    delta: MessageDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    """vLLM's and AIRI's: the stop string, where one ended the text."""
    logprobs: Any = None
    """Read where they are asked for: servers have them in several forms."""

    @property
    def added(self) -> str:
        """The text."""
        if self.delta is None:
            return self.text or ""
        return (self.delta.content or "") + (self.delta.refusal or "")

    @property
    def tokens(self) -> list[TokenLogprob]:
        """Log-probabilities of what is added, in the form of chats; none of thoughts. Raises ValueError for another."""
        delta = self.delta
        if self.logprobs is None or delta is None or delta.reasoning or delta.reasoning_content:
            return []
        try:
            told = msgspec.convert(self.logprobs, _Logprobs)
        except msgspec.ValidationError:
            raise ValueError("no log-probabilities of a chat") from None
        return (told.content if delta.content is not None else told.refusal) or []

    @property
    def calls(self) -> list[CallDelta]:
        """The calls that begin or go on."""
        return [] if self.delta is None else self.delta.tool_calls or []


class TokensDetails(msgspec.Struct):
    """Of a prompt."""

    cached_tokens: _Count | None = None


class Usage(msgspec.Struct):
    """What a request has taken, all its choices together."""

    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    prompt_tokens_details: TokensDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Of the prompt's."""
        details = self.prompt_tokens_details
        return 0 if details is None else min(details.cached_tokens or 0, self.prompt_tokens)


class Chunk(msgspec.Struct):
    """One event."""

    choices: list[ChunkChoice] | None = None
    usage: Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(Chunk)


def read_chunk(data: bytes) -> Chunk:
    """An event's data. Raises ValueError for what is no chunk."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("no chunk") from None
