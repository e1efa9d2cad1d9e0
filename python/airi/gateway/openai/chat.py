"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from airi.gateway import sse
from airi.gateway.errors import bad_field, invalid_value
from airi.gateway.gate import call_context
from airi.gateway.generation import Choice, Generation, Piece
from airi.gateway.http import CallRecord
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import FINGERPRINT, Answer, ModelCall
from airi.gateway.openai.logprobs import chat_logprobs
from airi.gateway.openai.schemas_chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    ToolDefinition,
)
from airi.gateway.openai.schemas_common import Usage
from airi.gateway.prompts import check_prompt, render_chat
from airi.gateway.sampling import sampling_params
from airi.policy.decisions import Action


class ChatAnswer(Answer):
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

    def pieces(self, choice: Choice, pieces: Iterable[Piece]) -> bytes:
        """One content delta per piece."""
        chunks = self._chunks[choice.index]
        if not self._wants_logprobs:
            return b"".join([chunks.delta(piece.text) for piece in pieces])
        tokenizer = self.model.tokenizer
        return b"".join(
            [chunks.delta(piece.text, chat_logprobs(tokenizer, piece.logprobs)) for piece in pieces]
        )

    def closing(self, choice: Choice) -> bytes:
        """An empty delta with the finish reason."""
        return self._chunks[choice.index].last(choice.finish_reason or "stop")

    def keep(self, choice: Choice, pieces: Iterable[Piece]) -> None:
        """Collects text and logprobs of one choice."""
        texts = self._texts.setdefault(choice.index, [])
        for piece in pieces:
            texts.append(piece.text)
            if self._wants_logprobs:
                entries = chat_logprobs(self.model.tokenizer, piece.logprobs).content or []
                self._logprobs.setdefault(choice.index, []).extend(entries)

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        """The chat.completion object."""
        return sse.encode(
            ChatCompletion(
                id=self.id,
                created=self.created,
                model=self.served_as,
                choices=[self._choice(choice) for choice in choices],
                usage=usage,
                system_fingerprint=FINGERPRINT,
            )
        )

    def _choice(self, choice: Choice) -> ChatChoice:
        logprobs = (
            ChatLogprobs(content=self._logprobs.get(choice.index, [])) if self._wants_logprobs else None
        )
        return ChatChoice(
            index=choice.index,
            message=AssistantMessage(content="".join(self._texts.get(choice.index, ()))),
            logprobs=logprobs,
            finish_reason="length" if choice.finish_reason == "length" else "stop",
        )


class ChatCompletions(ModelCall[ChatCompletionRequest]):
    """The endpoint."""

    request_type = ChatCompletionRequest
    action = Action.CHAT

    def context(
        self, request: ChatCompletionRequest, record: CallRecord, model: ServedModel
    ) -> dict[str, Any]:
        """As `ModelCall.context`."""
        return call_context(
            record,
            max_tokens=_max_tokens(request) or model.info.max_model_len,
            stream=bool(request.stream),
            tools=bool(request.tools),
            priority=request.priority,
        )

    async def start(
        self, request: ChatCompletionRequest, model: ServedModel, generation: Generation
    ) -> Answer:
        """Renders the chat once; every choice gets the same tokens and its own noise."""
        check_chat(request.messages, request.tools)
        _check_supported(request)
        tokens = await render_chat(model, request.messages, request, field="messages")
        max_tokens = _max_tokens(request)
        check_prompt(model, tokens, max_tokens, field="messages")
        if request.top_logprobs is not None and not request.logprobs:
            raise bad_field("top_logprobs", "needs `logprobs: true`")
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        params = sampling_params(request, model, max_tokens=max_tokens, logprobs=logprobs)
        for index in range(params.n):
            generation.add(
                tokens,
                params.for_choice(index),
                priority=request.priority,
                cache_salt=request.cache_salt,
            )
        return ChatAnswer(request, model)


def _max_tokens(request: ChatCompletionRequest) -> int | None:
    return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens


def check_chat(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> None:
    """Raises a 400 for messages or tools of a wrong form; they stay as they came, for the model's template."""
    for prefix, value, kind in (
        ("messages", messages, list[ChatMessage]),
        ("tools", tools, list[ToolDefinition]),
    ):
        if value is None:
            continue
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise invalid_value(error, value, prefix=prefix) from None


def _check_supported(request: ChatCompletionRequest) -> None:
    """Refuses what would change the answer and is not there yet, rather than ignoring it."""
    choice = request.tool_choice
    if choice not in (None, "none", "auto"):
        raise bad_field(
            "tool_choice",
            "only 'none' and 'auto' are supported: forced calls need constrained decoding",
            code="unsupported_parameter",
        )
    form = request.response_format
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise bad_field(
            "response_format",
            "only {'type': 'text'} is supported: JSON modes need constrained decoding",
            code="unsupported_parameter",
        )
