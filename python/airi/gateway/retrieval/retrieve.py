"""`/v1/retrieve`: rows of a collection for a query, and the prompt that is made of them where one is asked for."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from airi.gateway import sse
from airi.gateway.errors import decode_body
from airi.gateway.gate import call_context
from airi.gateway.http import CallRecord, Receive, Scope, Send, read_body, record_of, respond, watching
from airi.gateway.openai.chat import check_chat
from airi.gateway.openai.schemas_pooling import PoolingUsage
from airi.gateway.retrieval.finding import Finder, Found, context_hits
from airi.gateway.retrieval.prompting import citation_of, prompt_of, receipt_of
from airi.gateway.retrieval.schemas import (
    ContextFields,
    ContextOf,
    FoundRow,
    RetrieveRequest,
    RetrieveResponse,
)
from airi.gateway.tasks import GENERATES, check_task
from airi.policy.decisions import Action

if TYPE_CHECKING:
    from airi.gateway.gate import Gate

__all__ = ["Retrieve"]

_DECODER = msgspec.json.Decoder(RetrieveRequest)


class Retrieve:
    """The endpoint. Stateless between requests, but for the order of documents in earlier prompts."""

    def __init__(self, gate: Gate, finder: Finder, *, body_limit: int) -> None:
        self._gate = gate
        self._finder = finder
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        request = decode_body(_DECODER, await read_body(scope, receive, self._body_limit))
        record = record_of(scope)
        async with watching(receive):
            found = await self._find(request, record)
            context = (
                UNSET if request.context is None else await self._context(request.context, found, record)
            )
        record.prompt_tokens = found.tokens
        await respond(send, 200, sse.encode(_response(found, context)))

    async def _find(self, request: RetrieveRequest, record: CallRecord) -> Found:
        return await self._finder.find(
            record, request.collection, request.query, request, field="query", priority=request.priority
        )

    async def _context(self, fields: ContextFields, found: Found, record: CallRecord) -> ContextOf:
        """The prompt for a model that the caller may ask for prompts of: as `/tokenize` is."""
        asked = record.inner()
        asked.draw = record.draw
        model = self._gate.admit(
            asked, Action.TOKENIZE, fields.model, lambda _: call_context(asked, max_tokens=0)
        )
        check_task(model, GENERATES)
        messages = fields.messages
        check_chat(messages, None)
        context = await prompt_of(
            model,
            messages,
            context_hits(found.hits),
            reserved_output=fields.reserved_output,
            memory=self._finder.collections.memory(
                record.principal.tenant, model.name, found.collection.name
            ),
            field="context.messages",
        )
        return ContextOf(
            model=model.name,
            messages=[dict(message) for message in context.messages],
            citations=[citation_of(each) for each in context.citations.values()],
            receipt=receipt_of(context.receipt),
        )


def _response(found: Found, context: ContextOf | UnsetType) -> RetrieveResponse:
    return RetrieveResponse(
        id=f"retr-{secrets.token_hex(12)}",
        collection=found.collection.name,
        snapshot=found.snapshot,
        space=None if found.space is None else found.space.key,
        data=[
            FoundRow(
                id=hit.id,
                score=hit.score,
                text=hit.text,
                source=hit.source,
                metadata=hit.metadata,
                time=hit.time,
            )
            for hit in found.hits
        ],
        context=context,
        usage=PoolingUsage(prompt_tokens=found.tokens, total_tokens=found.tokens),
    )
