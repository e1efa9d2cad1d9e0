"""The choices of a chat as messages or chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import UNSET, UnsetType

from airi.gateway import sse
from airi.gateway.choice import Choice, Piece
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import FINGERPRINT, ChunkedAnswer, reason_of
from airi.gateway.openai.logprobs import chat_logprobs
from airi.gateway.openai.schemas_chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChatLogprob,
    ChatLogprobs,
)
from airi.gateway.openai.schemas_common import Usage
from airi.gateway.retrieval.schemas import Retrieval

__all__ = ["ChatAnswer"]


class ChatAnswer(ChunkedAnswer):
    """The choices of one chat request as messages or chunks."""

    def __init__(self, request: ChatCompletionRequest, model: ServedModel) -> None:
        super().__init__("chatcmpl", "chat.completion.chunk", request, model)
        self._wants_logprobs = bool(request.logprobs)
        self._chunks: dict[int, sse.ChatChunks] = {}
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, list[ChatLogprob]] = {}

    def opening(self, choice: Choice) -> bytes:
        """The role, with empty content."""
        chunks = self._chunks[choice.index] = sse.ChatChunks(self.frame, choice.index)
        return chunks.first()

    def chunks(self, choice: Choice) -> sse.ChatChunks:
        """Of a choice that was opened."""
        return self._chunks[choice.index]

    def entries(self, piece: Piece) -> list[ChatLogprob]:
        """The logprobs of a piece, where they are asked for."""
        if not self._wants_logprobs:
            return []
        return chat_logprobs(self.vocabulary, piece.logprobs).content or []

    def pieces(self, choice: Choice, pieces: Iterable[Piece]) -> bytes:
        """One content delta per piece."""
        chunks = self._chunks[choice.index]
        if not self._wants_logprobs:
            return b"".join([chunks.delta(piece.text) for piece in pieces])
        return b"".join(
            [chunks.delta(piece.text, chat_logprobs(self.vocabulary, piece.logprobs)) for piece in pieces]
        )

    def closing(self, choice: Choice) -> bytes:
        """An empty delta with the finish reason."""
        return self._chunks[choice.index].last(self.reason(choice), choice.filter_results, choice.certificate)

    def keep(self, choice: Choice, pieces: Iterable[Piece]) -> None:
        """Collects text and logprobs of one choice."""
        texts = self.texts(choice)
        for piece in pieces:
            texts.append(piece.text)
            if self._wants_logprobs:
                self._logprobs.setdefault(choice.index, []).extend(self.entries(piece))

    def texts(self, choice: Choice) -> list[str]:
        """The text of a choice so far, in parts."""
        return self._texts.setdefault(choice.index, [])

    def message(self, choice: Choice) -> AssistantMessage:
        """What a choice that is over comes to."""
        return AssistantMessage(content="".join(self.texts(choice)))

    def logprobs_of(self, choice: Choice) -> list[ChatLogprob]:
        """Of all tokens of a choice, where they were asked for."""
        return self._logprobs.get(choice.index, [])

    def reason(self, choice: Choice) -> Any:
        """Why a choice ended."""
        return reason_of(choice)

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The chat.completion object."""
        return sse.encode(
            ChatCompletion(
                id=self.id,
                created=self.created,
                model=self.served_as,
                choices=[self._choice(choice) for choice in choices],
                prompt_filter_results=self.prompt_results or UNSET,
                airi=self._told(choices),
                usage=usage,
                system_fingerprint=FINGERPRINT,
            )
        )

    def _told(self, choices: list[Choice]) -> Retrieval | UnsetType:
        """What was retrieved, and which of it an answer cites; of several answers nobody says."""
        if self.retrieved is None:
            return UNSET
        only = self.message(choices[0]).content if len(choices) == 1 else None
        return self.retrieved.told(only)

    def _choice(self, choice: Choice) -> ChatChoice:
        return ChatChoice(
            index=choice.index,
            message=self.message(choice),
            logprobs=ChatLogprobs(content=self.logprobs_of(choice)) if self._wants_logprobs else None,
            finish_reason=self.reason(choice),
            content_filter_results=choice.filter_results or UNSET,
            certificate=choice.certificate or UNSET,
        )
