"""`/v1/messages` and `/v1/messages/count_tokens`: a chat call, asked and answered in the form of Anthropic's API."""

from __future__ import annotations

import msgspec

from airi.gateway.anthropic.messages_answer import MessagesAnswer
from airi.gateway.anthropic.messages_input import read_count_request, read_messages_request
from airi.gateway.anthropic.schemas import CountTokensResponse
from airi.gateway.http import Receive, Scope, Send, read_body, record_of, respond
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import Answer
from airi.gateway.openai.chat import ChatCall, check_chat
from airi.gateway.openai.tokens import TokenEndpoint
from airi.gateway.openai.tool_calls import ChatPlan
from airi.gateway.openai.translated import TranslatedChat, translated
from airi.gateway.prompts import render_chat
from airi.gateway.tasks import GENERATES, check_task
from airi.sampling_params import SamplingParams


class Messages(ChatCall[TranslatedChat]):
    """The endpoint."""

    async def read(self, scope: Scope, body: bytes) -> TranslatedChat:
        """As `ModelCall.read`."""
        return await translated(read_messages_request, body)

    def answer(
        self, request: TranslatedChat, model: ServedModel, plan: ChatPlan, params: SamplingParams
    ) -> Answer:
        """A message with a block per text and call."""
        return MessagesAnswer(request, model, plan.calls())


class CountTokens(TokenEndpoint):
    """The endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        chat = await translated(read_count_request, await read_body(scope, receive, self._body_limit))
        model = self.admit(record_of(scope), chat.model)
        with chat.places.naming():
            check_task(model, GENERATES)
            check_chat(chat.messages, chat.tools)
            tokens = await render_chat(model, chat.messages, chat, field="messages")
        await respond(send, 200, msgspec.json.encode(CountTokensResponse(input_tokens=len(tokens))))
