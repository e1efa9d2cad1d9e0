"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from airi.gateway.errors import bad_field, decode_body
from airi.gateway.gate import Gate, call_context
from airi.gateway.http import CallRecord, Receive, Scope, Send, read_body, record_of, respond
from airi.gateway.models import ServedModel
from airi.gateway.openai.chat import check_chat
from airi.gateway.openai.schemas_common import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from airi.gateway.pooling import read_text
from airi.gateway.prompts import decode_tokens, encode_text, in_thread_if_long, render_chat
from airi.gateway.tasks import GENERATES, check_task
from airi.policy.decisions import Action

T = TypeVar("T")

_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


class TokenEndpoint:
    """What both endpoints share. Stateless between requests."""

    def __init__(self, gate: Gate, *, body_limit: int) -> None:
        self._gate = gate
        self._body_limit = body_limit

    async def read(self, scope: Scope, receive: Receive, decoder: msgspec.json.Decoder[T]) -> T:
        """The request that `decoder` reads; raises a 400 for anything else."""
        return decode_body(decoder, await read_body(scope, receive, self._body_limit))

    def admit(self, record: CallRecord, name: str | None) -> ServedModel:
        """The model whose tokens are asked for; raises a 404 or a 403, and a 400 where nobody here knows them."""
        model = self._gate.admit(record, Action.TOKENIZE, name, lambda _: call_context(record, max_tokens=0))
        if not model.knows_tokens:
            raise bad_field(
                "model", f"{model.name} is run by another server, and its tokenizer is not known here"
            )
        return model


class Tokenize(TokenEndpoint):
    """The endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        request = await self.read(scope, receive, _TOKENIZE)
        record = record_of(scope)
        model = self.admit(record, request.model)
        async with self._gate.counted(record, model) as headers:
            tokens = await self._tokens(request, model)
            response = TokenizeResponse(count=len(tokens), max_model_len=model.window, tokens=tokens)
            if request.return_token_strs:
                text_of = model.tokenizer.token_text
                response.token_strs = await in_thread_if_long(
                    lambda: [text_of(token) for token in tokens], len(tokens)
                )
            record.headers = headers
            await respond(send, 200, msgspec.json.encode(response))

    async def _tokens(self, request: TokenizeRequest, model: ServedModel) -> list[int]:
        if (request.prompt is None) == (request.messages is None):
            raise bad_field("prompt", "give either `prompt` or `messages`")
        messages: list[dict[str, Any]] = request.messages or []
        check_chat(messages, request.tools)
        if request.prompt is not None:
            special = request.add_special_tokens is not False
            if model.reader is not None:
                return await read_text(model, request.prompt, add_special_tokens=special)
            return await encode_text(model, request.prompt, add_special_tokens=special, field="prompt")
        check_task(model, GENERATES)
        return await render_chat(model, messages, request, field="messages")


class Detokenize(TokenEndpoint):
    """The endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        request = await self.read(scope, receive, _DETOKENIZE)
        record = record_of(scope)
        model = self.admit(record, request.model)
        async with self._gate.counted(record, model) as headers:
            skip = bool(request.skip_special_tokens)
            text = await decode_tokens(model, request.tokens, skip_special_tokens=skip)
            record.headers = headers
            await respond(send, 200, msgspec.json.encode(DetokenizeResponse(prompt=text)))
