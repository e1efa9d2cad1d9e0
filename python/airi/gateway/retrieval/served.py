"""The collections of a config: each with its rows, and the embedder whose versions have a space each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airi.errors import ConflictError
from airi.gateway.errors import ApiError
from airi.gateway.retrieval.search import Overlaps
from airi.policy.decisions import Resource
from airi.retrieval import Collection, EmbeddingSpace
from airi.retrieval.context import PromptMemory
from airi.retrieval.ingest.chunker import chunker_version

if TYPE_CHECKING:
    from airi.config import ConfigFile
    from airi.gateway.models import ServedModel

__all__ = ["Collections", "ServedCollection", "open_collections"]

_MEMORIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCollection:
    """Rows, and who embeds them."""

    name: str
    embedder: str
    """Name of the model."""
    data_class: str
    chunker: str
    """How documents are cut: a part of every space."""
    rows: Collection

    @property
    def resource(self) -> Resource:
        """As policies know it."""
        return Resource("Collection", self.name, {"name": self.name, "data_class": self.data_class})

    def space_of(self, model: ServedModel) -> EmbeddingSpace:
        """The space of a version of the embedder."""
        info = model.info
        return EmbeddingSpace(
            model=info.digest,
            tokenizer=model.tokenizer_sha256,
            pooling=info.pooling,
            dimension=info.vector_size,
            normalisation="l2" if info.normalizes else "none",
            chunker=self.chunker,
        )

    def searched(self, model: ServedModel) -> EmbeddingSpace:
        """The space that a query which this version embeds is searched in.

        Raises ConflictError where rows have no vectors in it: those of another version are never compared with it.
        """
        space = self.space_of(model)
        if space not in self.rows.spaces:
            raise ConflictError(
                f"collection {self.name} has no vectors of {model.name}@{model.version} yet: write rows, or wait "
                "until they are embedded again",
            )
        return space


class Collections:
    """By name, with what prompts of each caller were made of.

    *Thread safety*: none; event loop only.
    """

    def __init__(self, served: list[ServedCollection]) -> None:
        self._served = {each.name: each for each in served}
        self._memories: dict[tuple[str, ...], PromptMemory] = {}
        self.overlaps = Overlaps()

    def __iter__(self) -> Iterator[ServedCollection]:
        return iter(self._served.values())

    def find(self, name: str) -> ServedCollection | None:
        """The one of this name."""
        return self._served.get(name)

    def memory(self, *of: str) -> PromptMemory:
        """The order of documents in earlier prompts of the same tenant, model and collection."""
        found = self._memories.pop(of, None) or PromptMemory()
        while len(self._memories) >= _MEMORIES:
            del self._memories[next(iter(self._memories))]
        self._memories[of] = found
        return found


def collection_not_found(name: str, known: list[str]) -> ApiError:
    """A 404 that lists those which the caller may use."""
    shown = ", ".join(known[:20]) or "none"
    return ApiError(
        404,
        f"no collection {name[:64]!r}; there are: {shown}",
        param="collection",
        code="collection_not_found",
    )


@asynccontextmanager
async def open_collections(config: ConfigFile) -> AsyncIterator[Collections]:
    """The collections of a config until the block ends. Raises StateError for a file that cannot be used."""
    served: list[ServedCollection] = []
    try:
        for given in config.config.collections:
            fields = None if given.fields is None else dict(given.fields)
            rows = await asyncio.to_thread(
                Collection.open,
                config.resolve(given.path),
                given.name,
                fields=fields,
            )
            served.append(
                ServedCollection(
                    name=given.name,
                    embedder=given.embedder,
                    data_class=given.data_class,
                    chunker=chunker_version(given.chunking.max_tokens, given.chunking.overlap_tokens),
                    rows=rows,
                )
            )
        yield Collections(served)
    finally:
        for each in served:
            await asyncio.to_thread(each.rows.close)
