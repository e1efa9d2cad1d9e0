"""Server-sent events as bytes: what does not change within a stream is encoded once.

A chunk is `head + index + middle + delta + tail`; only the delta goes through the JSON encoder. Tokens that are
ready together leave in one write, each still as an event of its own, so that clients that count events count tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from airi.gateway.retrieval.schemas import Retrieval

DONE = b"data: [DONE]\n\n"
END = b"\n\n"

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # else nginx holds events back until a buffer is full
)

_encoder = msgspec.json.Encoder()
encode = _encoder.encode


def event(payload: Any) -> bytes:
    """One event with a JSON payload."""
    return b"data: " + encode(payload) + END


def named_event(name: str, payload: Any) -> bytes:
    """The same of an API whose events have names."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), encode(payload))


class ChunkFrame:
    """The unchanging bytes around the choices of one streamed response."""

    def __init__(self, *, id: str, object: str, created: int, model: str, fingerprint: str) -> None:
        fixed = {
            "id": id,
            "object": object,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._head = b"data: " + encode(fixed)[:-1] + b',"choices":['

    def choice_head(self, index: int) -> bytes:
        """All bytes up to the choice's own fields."""
        return b'%s{"index":%d,' % (self._head, index)

    def prompts(self, results: list[Any]) -> bytes:
        """The first event of a stream where there is something to tell of its prompts: no choice."""
        return self._head + b'],"prompt_filter_results":' + encode(results) + b"}" + END

    def retrieval(self, told: Retrieval) -> bytes:
        """What was put into the prompt, in an event without choices."""
        return self._head + b'],"airi":' + encode(told) + b"}" + END

    def usage(self, usage: msgspec.Struct) -> bytes:
        """The last event of a stream that asked for usage: no choice, only the counts."""
        return self._head + b'],"usage":' + encode(usage) + b"}" + END


CHOICE_END = b"}]}" + END


def _ending(finish_reason: str, results: Any, certificate: Any) -> bytes:
    found = b"" if results is None else b',"content_filter_results":' + encode(results)
    proof = b"" if certificate is None else b',"certificate":' + encode(certificate)
    return encode(finish_reason) + found + proof + CHOICE_END


class ChatChunks:
    """Events of one choice of a streamed chat."""

    def __init__(self, frame: ChunkFrame, index: int) -> None:
        head = frame.choice_head(index)
        self._head = head
        self._content = head + b'"delta":{"content":'

    def first(self) -> bytes:
        """The event that opens the message."""
        return self._head + b'"delta":{"role":"assistant","content":""},"finish_reason":null' + CHOICE_END

    def delta(self, text: str, logprobs: Any = None) -> bytes:
        """One piece of text, with the logprobs of its tokens where asked for."""
        if logprobs is None:
            return self._content + encode(text) + b'},"finish_reason":null}]}\n\n'
        return b'%s%s},"logprobs":%s,"finish_reason":null}]}\n\n' % (
            self._content,
            encode(text),
            encode(logprobs),
        )

    def fields(self, delta: Any, logprobs: Any = None) -> bytes:
        """A delta of any fields."""
        between = b"" if logprobs is None else b',"logprobs":' + encode(logprobs)
        return b'%s"delta":%s%s,"finish_reason":null}]}\n\n' % (self._head, encode(delta), between)

    def last(self, finish_reason: str, results: Any = None, certificate: Any = None) -> bytes:
        """The event that closes the choice, with what content rules found in it and its certificate."""
        return self._head + b'"delta":{},"finish_reason":' + _ending(finish_reason, results, certificate)


class TextChunks:
    """Events of one choice of a streamed completion."""

    def __init__(self, frame: ChunkFrame, index: int) -> None:
        head = frame.choice_head(index)
        self._text = head + b'"text":'

    def delta(self, text: str, logprobs: Any = None) -> bytes:
        """One piece of text, with the logprobs of its tokens where asked for."""
        if logprobs is None:
            return self._text + encode(text) + b',"logprobs":null,"finish_reason":null}]}\n\n'
        return b'%s%s,"logprobs":%s,"finish_reason":null}]}\n\n' % (
            self._text,
            encode(text),
            encode(logprobs),
        )

    def last(self, finish_reason: str, results: Any = None, certificate: Any = None) -> bytes:
        """The event that closes the choice, with what belongs to its end; it adds no text."""
        return (
            self._text + b'"","logprobs":null,"finish_reason":' + _ending(finish_reason, results, certificate)
        )
