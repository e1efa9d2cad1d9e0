"""From a question to the prompt that a model answers it by: embedded, searched for, and built into a context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airi.errors import RequestError
from airi.retrieval.collection import Collection
from airi.retrieval.context import (
    ChatTokenizer,
    Context,
    ContextHit,
    ContextOptions,
    PromptMemory,
    build_context,
)
from airi.retrieval.context.building import Message
from airi.retrieval.records import Hit, Snapshot
from airi.retrieval.spaces import Embedder

__all__ = ["Retriever", "SearchOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How rows are found for a question."""

    k: int = 20
    """Rows that are found, of which a context uses those that fit."""
    vector_weight: float = 0.7
    """The part that likeness has in a score, 0 to 1; the rest is that of words. 1 asks for likeness alone."""
    mmr: float | None = None
    """Chooses rows that are unlike each other, as in `Collection.search`."""


class Retriever:
    """Finds rows of a collection for questions, by likeness and by words.

    *Thread safety*: that of the embedder.
    """

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder,
        *,
        search: SearchOptions | None = None,
        context: ContextOptions | None = None,
    ) -> None:
        self._collection = collection
        self._embedder = embedder
        self._search = search or SearchOptions()
        self._context = context or ContextOptions()
        self._memory = PromptMemory()

    def search(
        self, question: str, *, filter: Mapping[str, Any] | None = None, at: Snapshot | int | None = None
    ) -> list[Hit]:
        """The rows that fit a question best, best first.

        RequestError for an empty question, a filter that is none, and where the embedder's space is not one of the
        collection's, or lacks rows.
        """
        if not question.strip():
            raise RequestError("question is empty", field="question")
        options = self._search
        # Sums of scores, not of ranks: those hardly differ, and a context would take the shortest rows.
        return self._collection.search(
            self._embedder.encode([question])[0],
            space=self._embedder.space,
            text=None if options.vector_weight == 1 else question,
            k=options.k,
            filter=filter,
            at=at,
            fusion="weighted",
            weight=options.vector_weight,
            mmr=options.mmr,
        )

    def context(
        self,
        question: str,
        *,
        tokenizer: ChatTokenizer,
        window: int,
        reserved_output: int,
        system: str | None = None,
        history: Sequence[Message] = (),
        filter: Mapping[str, Any] | None = None,
        at: Snapshot | int | None = None,
        refuse: Callable[[ContextHit], str | None] | None = None,
    ) -> Context:
        """The prompt of a question and what is found for it, as `build_context` makes it of `search`.

        Documents stand in the order of this retriever's earlier prompts: one retriever for each model, and for those
        who may know of each other's questions.
        """
        return build_context(
            question,
            [_context_hit(hit) for hit in self.search(question, filter=filter, at=at)],
            tokenizer=tokenizer,
            window=window,
            reserved_output=reserved_output,
            system=system,
            history=history,
            options=self._context,
            memory=self._memory,
            refuse=refuse,
        )


def _context_hit(hit: Hit) -> ContextHit:
    return ContextHit(id=hit.id, text=hit.text, score=hit.score, source=hit.source, metadata=hit.metadata)
