"""`/v1/responses`: a chat call, asked and answered in the form of the Responses API."""

from __future__ import annotations

from airi.gateway.http import Scope
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import Answer
from airi.gateway.openai.chat import ChatCall
from airi.gateway.openai.responses_answer import ResponseAnswer
from airi.gateway.openai.responses_input import ResponseChat, read_response_request
from airi.gateway.openai.tool_calls import ChatPlan
from airi.gateway.openai.translated import translated
from airi.sampling_params import SamplingParams


class Responses(ChatCall[ResponseChat]):
    """The endpoint. It keeps nothing."""

    async def read(self, scope: Scope, body: bytes) -> ResponseChat:
        """As `ModelCall.read`."""
        return await translated(read_response_request, body)

    def answer(
        self, request: ResponseChat, model: ServedModel, plan: ChatPlan, params: SamplingParams
    ) -> Answer:
        """A response with an item per text and call."""
        return ResponseAnswer(request, model, plan.calls(), params)
