"""One event of an upstream's stream, chat or completion, as what it adds to the choices."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = ["CallDelta", "Chunk", "ChunkChoice", "Usage", "read_chunk"]

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
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(msgspec.Struct):
    """What is added to a choice."""

    index: _Count = 0
    delta: MessageDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    """vLLM's and AIRI's: the stop string, where one ended the text."""

    @property
    def added(self) -> str:
        """The text."""
        if self.delta is None:
            return self.text or ""
        return (self.delta.content or "") + (self.delta.refusal or "")

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
