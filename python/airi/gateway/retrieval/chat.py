"""`airi: {"retrieve": COLLECTION}` of a chat: its prompt gets what is found for its question, its answer citations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from airi.gateway.errors import bad_field
from airi.gateway.openai.chat import check_chat
from airi.gateway.retrieval.finding import context_hits
from airi.gateway.retrieval.prompting import citation_of, last_question, prompt_of, receipt_of
from airi.gateway.retrieval.schemas import Retrieval
from airi.retrieval.context import Citation, Context
from airi.retrieval.context.citations import cite

if TYPE_CHECKING:
    from airi.gateway.http import CallRecord
    from airi.gateway.models import ServedModel
    from airi.gateway.openai.schemas_chat import ChatCompletionRequest
    from airi.gateway.retrieval.finding import Finder

__all__ = ["Retrieved", "retrieve_for"]


class Retrieved:
    """What was put into a chat's prompt."""

    def __init__(self, collection: str, context: Context) -> None:
        self._citations = context.citations
        self._told = Retrieval(
            collection=collection,
            citations=[citation_of(each) for each in context.citations.values()],
            receipt=receipt_of(context.receipt),
        )

    @property
    def citations(self) -> dict[int, Citation]:
        """By number."""
        return dict(self._citations)

    def told(self, answer: str | None) -> Retrieval:
        """As responses have it; `answer`: which citations it has, None where there are several answers."""
        if answer is None:
            return self._told
        found = cite(answer, self._citations)
        return msgspec.structs.replace(
            self._told,
            cited=[citation.number for citation in found.citations],
            unknown=list(found.unknown),
        )


async def retrieve_for(
    request: ChatCompletionRequest,
    model: ServedModel,
    record: CallRecord,
    finder: Finder | None,
    *,
    output: int | None,
) -> Retrieved:
    """Puts documents into the messages of a request, within the model's window, of which `output` is the answer's.

    Raises a 400 for what cannot be looked for, and what `Finder.find` raises.
    """
    options = request.airi
    if options is None or finder is None:
        raise bad_field("airi.retrieve", "names a collection, and this server has none")
    if not model.knows_tokens:
        raise bad_field("airi.retrieve", f"needs the tokens of {model.name}, which another server runs")
    check_chat(request.messages, request.tools)
    question = last_question(request.messages, "messages")
    found = await finder.find(
        record, options.retrieve, question, options, field="messages", priority=request.priority
    )
    context = await prompt_of(
        model,
        request.messages,
        context_hits(found.hits),
        reserved_output=output,
        memory=finder.collections.memory(record.principal.tenant, model.name, found.collection.name),
        field="messages",
        request=request,
    )
    request.messages = [dict(message) for message in context.messages]
    return Retrieved(found.collection.name, context)
