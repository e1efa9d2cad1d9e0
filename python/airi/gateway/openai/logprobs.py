"""Log-probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from airi.gateway.openai.schemas_chat import ChatLogprob, ChatLogprobs, TopLogprob
from airi.gateway.openai.schemas_completions import CompletionLogprobs
from airi.text import Tokenizer
from airi.transport import TokenLogprobs

# JSON has no infinity: a token that a mask or bias made impossible shows as this, as elsewhere in the field.
LOWEST = -9999.0


class Vocabulary(Protocol):
    """What the ids of entries stand for."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token."""
        ...


def chat_logprobs(tokenizer: Vocabulary, entries: Sequence[TokenLogprobs]) -> ChatLogprobs:
    """The chat form: one object per token with its text, bytes and alternatives."""
    return ChatLogprobs(content=[_chat_entry(tokenizer, entry) for entry in entries])


def _chat_entry(tokenizer: Vocabulary, entry: TokenLogprobs) -> ChatLogprob:
    token = _top(tokenizer, entry.token, entry.logprob)
    return ChatLogprob(
        token=token.token,
        logprob=token.logprob,
        bytes=token.bytes,
        top_logprobs=[
            _top(tokenizer, i, value) for i, value in zip(entry.top_tokens, entry.top_logprobs, strict=True)
        ],
    )


def _top(tokenizer: Vocabulary, token_id: int, logprob: float) -> TopLogprob:
    piece = tokenizer.token_bytes(token_id)
    return TopLogprob(token=piece.decode("utf-8", "replace"), logprob=max(logprob, LOWEST), bytes=list(piece))


def completion_logprobs(
    tokenizer: Tokenizer,
    entries: Sequence[TokenLogprobs | None],
    tokens: Sequence[int],
    offsets: Sequence[int],
) -> CompletionLogprobs:
    """The completions form: parallel lists. An entry is None for a token that nothing predicts."""
    return CompletionLogprobs(
        tokens=[tokenizer.token_text(token) for token in tokens],
        token_logprobs=[None if entry is None else max(entry.logprob, LOWEST) for entry in entries],
        top_logprobs=[None if entry is None else _alternatives(tokenizer, entry) for entry in entries],
        text_offset=list(offsets),
    )


def _alternatives(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, float]:
    """Text to logprob, likeliest first, the token itself always among them.

    Two ids may share a text (parts of characters do): the likelier one stands.
    """
    top: dict[str, float] = {}
    for token_id, value in zip(entry.top_tokens, entry.top_logprobs, strict=True):
        top.setdefault(tokenizer.token_text(token_id), max(value, LOWEST))
    top.setdefault(tokenizer.token_text(entry.token), max(entry.logprob, LOWEST))
    return top
