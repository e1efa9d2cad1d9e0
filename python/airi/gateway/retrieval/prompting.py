"""The prompt of a chat and of what was found for its question, counted as the model that will read it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airi.errors import ContextLengthError
from airi.gateway.errors import bad_field
from airi.gateway.openai.schemas_common import TokenizeRequest
from airi.gateway.prompts import ChatPrompt, chat_renderer, encode_now
from airi.gateway.retrieval.schemas import CitationOf, DroppedHit, ReceiptOf
from airi.retrieval.context import Context, build_context

if TYPE_CHECKING:
    from airi.gateway.models import ServedModel
    from airi.retrieval.context import Citation, ContextHit, PromptMemory, Receipt

__all__ = ["citation_of", "last_question", "prompt_of", "receipt_of"]

Message = Mapping[str, Any]
_OUTPUT_SHARE = 4
"""A quarter of the window is left to the answer where nobody says how much."""


class _Counter:
    """A chat template as `build_context` counts by it, with the tools and the like of a request."""

    def __init__(self, model: ServedModel, request: ChatPrompt, field: str) -> None:
        self._model, self._field = model, field
        self._render = chat_renderer(model, request)
        self.special_ids = model.tokenizer.special_ids
        self.token_text = model.tokenizer.token_text
        self.encode = model.tokenizer.encode

    def encode_chat(self, messages: Sequence[Message], /) -> list[int]:
        """Ids of the prompt."""
        return encode_now(self._model, self._render(messages), add_special_tokens=False, field=self._field)


def last_question(messages: Sequence[Message], field: str) -> str:
    """The text of the last message, which must be a user's; raises a 400."""
    last = messages[-1]
    content = last.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if last.get("role") != "user" or not isinstance(content, str) or not content.strip():
        raise bad_field(field, "must end with a text of the user: what is looked for")
    return content


async def prompt_of(
    model: ServedModel,
    messages: Sequence[Message],
    hits: Sequence[ContextHit],
    *,
    reserved_output: int | None,
    memory: PromptMemory,
    field: str,
    request: ChatPrompt | None = None,
) -> Context:
    """The messages with the documents that fit and are worth most. Raises ContextLengthError where none could fit.

    `request`: whose tools and template arguments belong to the prompt.
    """
    counter = _Counter(model, request or TokenizeRequest(), field)
    window = model.info.max_model_len
    reserved = window // _OUTPUT_SHARE if reserved_output is None else reserved_output
    first = messages[0] if messages[0].get("role") in ("system", "developer") else None
    system = None if first is None else first.get("content")
    begins = first is not None and isinstance(system, str) and first.get("role") == "system"

    def build() -> Context:
        return build_context(
            last_question(messages, field),
            hits,
            tokenizer=counter,
            window=window,
            reserved_output=reserved,
            system=system if begins else None,
            history=list(messages[1 if begins else 0 : -1]),
            memory=memory,
        )

    try:
        return await asyncio.to_thread(build)
    except ContextLengthError as error:
        raise ContextLengthError(str(error), field=field) from None
    except RecursionError:
        raise bad_field(field, "or what comes with them is nested too deeply") from None


def citation_of(citation: Citation) -> CitationOf:
    """As responses have it."""
    return CitationOf(
        number=citation.number,
        source=citation.source,
        ids=list(citation.ids),
        headings=list(citation.headings),
        start=citation.start,
        end=citation.end,
        pages=None if citation.pages is None else list(citation.pages),
    )


def receipt_of(receipt: Receipt) -> ReceiptOf:
    """As responses have it."""
    return ReceiptOf(
        window=receipt.window,
        prompt_tokens=receipt.prompt_tokens,
        document_tokens=receipt.document_tokens,
        reserved_output=receipt.reserved_output,
        left=receipt.left,
        used=[line.id for line in receipt.used],
        dropped=[
            DroppedHit(
                id=line.id,
                source=line.source,
                score=line.score,
                reason=line.outcome,
                detail=line.detail,
            )
            for line in receipt.dropped
        ],
    )
