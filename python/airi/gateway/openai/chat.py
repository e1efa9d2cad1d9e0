"""`/v1/chat/completions`."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from airi.gateway.errors import bad_field, decode_body, invalid_value
from airi.gateway.gate import Gate, call_context
from airi.gateway.generation import Generation
from airi.gateway.http import CallRecord, Scope
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import Answer, ModelCall
from airi.gateway.openai.chat_answer import ChatAnswer
from airi.gateway.openai.inputs import screen_chat
from airi.gateway.openai.schemas_chat import ChatCompletionRequest, ChatMessage, ToolDefinition
from airi.gateway.openai.tool_calls import ChatPlan, ToolAnswer, plan_chat
from airi.gateway.prompts import check_prompt, is_long, render_chat
from airi.gateway.sampling import sampling_params
from airi.gateway.upstreams.generation import UpstreamGeneration
from airi.gateway.upstreams.requests import ask_chat, check_length
from airi.policy.decisions import Action
from airi.sampling_params import SamplingParams

if TYPE_CHECKING:
    from airi.gateway.retrieval.chat import Retrieved
    from airi.gateway.retrieval.finding import Finder

C = TypeVar("C", bound=ChatCompletionRequest)

_DECODER = msgspec.json.Decoder(ChatCompletionRequest)


class ChatCall(ModelCall[C]):
    """An endpoint that continues a chat, in whatever form the chat comes and the answer goes."""

    action = Action.CHAT

    @abstractmethod
    def answer(self, request: C, model: ServedModel, plan: ChatPlan, params: SamplingParams) -> Answer:
        """The form of the answer to a request that can be served."""

    def context(self, request: C, record: CallRecord, model: ServedModel) -> dict[str, Any]:
        """As `ModelCall.context`."""
        return call_context(
            record,
            max_tokens=_max_tokens(request) or model.info.max_model_len,
            n=request.n or 1,
            stream=bool(request.stream),
            tools=bool(request.tools),
            priority=request.priority,
        )

    async def start(self, request: C, model: ServedModel, generation: Generation) -> Answer:
        """Renders the chat once; every choice gets the same tokens and its own noise."""
        check_chat(request.messages, request.tools)
        content, max_tokens = generation.content, _max_tokens(request)
        if isinstance(generation, UpstreamGeneration):
            check_length(model, sum(map(_size, request.messages)), "messages")
            if content is not None:
                await screen_chat(request, content)
            plan, params = await ask_chat(request, model, generation, max_tokens)
            answer = self.answer(request, model, plan, params)
            answer.vocabulary = generation.vocabulary
            return answer
        if content is not None:
            if content.input.exist and is_long(model, content.request_bytes):
                # Rules read nothing that is too long for an answer.
                await _prompt(request, model, max_tokens)
            await screen_chat(request, content)
        plan = plan_chat(request, model)
        tokens = await _prompt(request, model, max_tokens)
        if request.top_logprobs is not None and not request.logprobs:
            raise bad_field("top_logprobs", "needs `logprobs: true`")
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        if generation.sight is not None:
            generation.sight.prompt_for = partial(_render, request)
            generation.sight.declared = plan.declared
        generation.form = plan.form
        if content is not None:
            content.json = plan.json
        generation.shown_tokens = () if plan.format is None else plan.format.mark_ids
        structured = None if plan.form is None else plan.form.structured
        params = sampling_params(
            request, model, max_tokens=max_tokens, logprobs=logprobs, structured=structured
        )
        for index in range(params.n):
            generation.add(
                tokens,
                params.for_choice(index),
                priority=request.priority,
                cache_salt=request.cache_salt,
            )
        return self.answer(request, model, plan, params)


class ChatCompletions(ChatCall[ChatCompletionRequest]):
    """The endpoint."""

    def __init__(self, gate: Gate, *, body_limit: int, finder: Finder | None = None) -> None:
        """`finder`: of what chats ask to be put into their prompts; None: there are no collections."""
        super().__init__(gate, body_limit=body_limit)
        self._finder = finder

    async def prepare(
        self, request: ChatCompletionRequest, model: ServedModel, record: CallRecord
    ) -> Retrieved | None:
        """As `Call.prepare`: documents for the question."""
        if request.airi is None:
            return None
        from airi.gateway.retrieval.chat import retrieve_for

        return await retrieve_for(request, model, record, self._finder, output=_max_tokens(request))

    async def read(self, scope: Scope, body: bytes) -> ChatCompletionRequest:
        """As `ModelCall.read`."""
        return decode_body(_DECODER, body)

    def answer(
        self, request: ChatCompletionRequest, model: ServedModel, plan: ChatPlan, params: SamplingParams
    ) -> Answer:
        """A message per choice, with the calls that are in it."""
        if plan.format is None:
            return ChatAnswer(request, model)
        return ToolAnswer(request, model, plan)


async def _prompt(request: ChatCompletionRequest, model: ServedModel, max_tokens: int | None) -> list[int]:
    tokens = await _render(request, model)
    check_prompt(model, tokens, max_tokens, field="messages")
    return tokens


async def _render(request: ChatCompletionRequest, model: ServedModel) -> list[int]:
    return await render_chat(model, request.messages, request, field="messages")


def _max_tokens(request: ChatCompletionRequest) -> int | None:
    return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens


def _size(message: dict[str, Any]) -> int:
    """Characters of a message's text."""
    text = message.get("content")
    parts = text if isinstance(text, list) else [{"text": text}]
    return sum(len(part.get("text") or "") for part in parts)


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
            raise invalid_value(error, value, kind, prefix=prefix) from None
