"""One search of a collection, and the same once more with the vectors of a candidate, whom nobody's answer is from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from airi.errors import RequestError
from airi.gateway.errors import ApiError, bad_field
from airi.gateway.retrieval.embedding import embed_for_nobody
from airi.gateway.retrieval.schemas import RetrieveFields
from airi.gateway.scoring import Unscored
from airi.lifecycle.observed import Paired
from airi.sampling_params import MAX_PRIORITY

if TYPE_CHECKING:
    from airi.gateway.models import ServedModel
    from airi.gateway.retrieval.served import ServedCollection
    from airi.retrieval import EmbeddingSpace, Hit
    from airi.retrieval.spaces import Vectors

__all__ = ["Overlaps", "Search", "most_tokens"]


class Search(NamedTuple):
    """What is looked for."""

    collection: ServedCollection
    query: str
    fields: RetrieveFields
    filter: Mapping[str, Any] | None
    """Policies' and the caller's."""

    async def made(
        self, vector: Vectors | None, space: EmbeddingSpace | None, *, at: int | None = None
    ) -> tuple[list[Hit], int]:
        """The rows, and the moment that they are of: the caller's, `at` where that is given, or now."""
        fields, rows = self.fields, self.collection.rows

        def made() -> tuple[list[Hit], int]:
            latest = rows.snapshot().number
            asked = fields.snapshot if at is None else at
            hits = rows.search(
                vector,
                space=space,
                text=None if fields.mode == "vector" else self.query,
                k=fields.top_k,
                filter=self.filter,
                # Graphs are of what there is now: a search of that moment by its number would go without.
                at=None if asked == latest else asked,
                mmr=fields.mmr,
            )
            return hits, latest if asked is None else asked

        return await asyncio.to_thread(made)


class Overlaps:
    """overlap@k of candidates: how many of the k rows that stable finds they find, too.

    *Thread safety*: none; event loop only.
    """

    def __init__(self) -> None:
        self._by_space: dict[tuple[str, str], Paired] = {}

    async def shared_with(
        self, candidate: ServedModel, search: Search, stable: Sequence[Hit], at: int
    ) -> int:
        """How many of the rows that stable has found at a moment the candidate finds.

        Raises Unscored where it has no vectors of all rows or cannot read the query, AiriError as calls end.
        """
        collection = search.collection
        space = collection.space_of(candidate)
        if collection.rows.pending(space):
            raise Unscored(f"{candidate.engine_name} has no vectors of all rows")
        try:
            most = most_tokens(search.fields, candidate)
            (vector,) = await embed_for_nobody(candidate, [search.query], most=most, priority=-MAX_PRIORITY)
        except (ApiError, RequestError) as error:
            raise Unscored(f"{candidate.engine_name} takes no such query: {type(error).__name__}") from None
        hits, _ = await search.made(vector, space, at=at)
        shared = len({hit.id for hit in stable}.intersection(hit.id for hit in hits))
        tally = self._by_space.setdefault((collection.name, space.key), Paired())
        tally.add(shared, len(stable))
        candidate.metrics.overlapped(collection.name, candidate.version, shared / len(stable))
        return shared

    def told(self, collection: str, space: str) -> dict[str, Any] | None:
        """Searches that were made again in a space, and the share of rows; None where there were none."""
        found = self._by_space.get((collection, space))
        return None if found is None else {"searches": found.answers, "overlap": round(found.mean, 4)}


def most_tokens(fields: RetrieveFields, model: ServedModel) -> int | None:
    """Tokens that a query is cut to for this version; None where it may not be cut. Raises a 400."""
    asked = fields.truncate_prompt_tokens
    if asked is None or asked == -1:
        return None if asked is None else model.window
    least = 1 + (0 if model.reader is None else model.reader.least(is_pair=False))
    if not least <= asked <= model.window:
        accepted = f"{least} to {model.window}, or -1 for the most that {model.name} takes"
        raise bad_field("truncate_prompt_tokens", f"is {asked}; accepted: {accepted}", code="invalid_value")
    return asked
