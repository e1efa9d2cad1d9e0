"""A collection in Qdrant, for several machines that share one. Needs the extra `qdrant`."""

from __future__ import annotations

import hashlib
import operator
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from airi.errors import AiriError, RequestError, StateError
from airi.retrieval.backends.facts import equality, existence, facts_of, fields_of, numbers_of, plain_values
from airi.retrieval.filters import And, Compare, Exists, FieldTypes, Filter, In, Not, check_fields, parse
from airi.retrieval.records import Hit, Row, StoredRow, Written, check_rows, digest_of
from airi.retrieval.search.query import MAX_K
from airi.retrieval.spaces import EmbeddingSpace, query_vector, space_vectors

__all__ = ["QdrantBackend"]

try:
    from qdrant_client import AsyncQdrantClient, models
    from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse
except ImportError:
    raise ImportError("collections in Qdrant need pip install 'airi[qdrant]'") from None

_PAGE = 1000
_INDEXED = {"facts": models.PayloadSchemaType.KEYWORD, "numbers[].value": models.PayloadSchemaType.FLOAT}
_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_IDS = uuid.UUID("5d0c0d3e-8f0a-4c52-9a3f-6b1f7a1d2c44")
"""Of what ids of points are made from: Qdrant takes no texts."""


class QdrantBackend:
    """Rows as points, with a named vector for each space.

    What a filter may ask of a row is written beside it as facts, so that Qdrant's answers mean what those of other
    backends do. A search with a filter compares all rows that pass. Order of texts, which Qdrant does not know, reads
    the rows that have the field. A batch is one request, which Qdrant applies in its order; writers of the same rows
    at the same time may both count them as added.
    """

    def __init__(
        self, client: AsyncQdrantClient, name: str, shown: str, fields: FieldTypes | None, *, is_server: bool
    ) -> None:
        self._client = client
        self._is_server = is_server
        self._shown = shown
        self._fields = fields
        self._collection = f"airi_{hashlib.sha256(name.encode()).hexdigest()[:32]}"

    @classmethod
    async def open(
        cls, location: str, name: str, *, api_key: str | None = None, fields: FieldTypes | None = None
    ) -> QdrantBackend:
        """Connects to `http://...` or `https://...`; another location is a folder, or `:memory:`, without a server.

        StateError where it does not answer.
        """
        shown = f"collection {name} (Qdrant)"
        is_server = location.startswith(("http://", "https://"))
        with _told(shown):
            if is_server:
                client = AsyncQdrantClient(url=location, api_key=api_key, check_compatibility=False)
            elif location == ":memory:":
                client = AsyncQdrantClient(location)
            else:
                client = AsyncQdrantClient(path=str(Path(location)))
        backend = cls(client, name, shown, fields, is_server=is_server)
        try:
            with _told(shown):
                await client.collection_exists(backend._collection)
        except BaseException:
            await client.close()
            raise
        return backend

    async def close(self) -> None:
        """Gives the connections back."""
        await self._client.close()

    async def add_space(self, space: EmbeddingSpace) -> None:
        """Makes it a space of the collection, unless it is one; RequestError where rows are there already."""
        with _told(self._shown):
            known = await self._spaces()
            if space.key in known:
                return
            count = await self.count() if known else 0
            if count:
                raise RequestError(
                    f"space {space.key[:12]} has no vectors of {count} of {count} rows: it must be added before them",
                    field="space",
                )
            if known:  # without rows: it is made again with one more
                await self._client.delete_collection(self._collection)
            new = models.VectorParams(size=space.dimension, distance=models.Distance.DOT)
            await self._client.create_collection(self._collection, vectors_config={**known, space.key: new})
            if self._is_server:  # without one all rows are compared anyway
                for field, kind in _INDEXED.items():
                    await self._client.create_payload_index(self._collection, field, field_schema=kind)

    async def upsert(
        self, rows: Sequence[Row], vectors: Mapping[EmbeddingSpace, Any], *, remove: Iterable[str] = ()
    ) -> Written:
        """Writes rows with vectors of every space of the collection; rows that are there already are left alone."""
        rows = list(rows)
        ids = [row.id for row in rows]
        encoded = check_rows(rows)
        if self._fields is not None:
            check_fields(rows, self._fields)
        checked = {space: space_vectors(space, given, ids) for space, given in vectors.items()}
        gone = list(set(remove) - set(ids))
        digests = [digest_of(row, metadata).hex() for row, metadata in zip(rows, encoded, strict=True)]
        now = time.time()
        with _told(self._shown):
            await self._check_spaces(checked, needs_all=bool(rows))
            known = await self._known([*ids, *gone])
            changed = {i for i, row in enumerate(rows) if known.get(row.id, ("", 0.0))[0] != digests[i]}
            points = []
            for i, row in enumerate(rows):
                given = now if row.time is None else float(row.time)
                when = given if i in changed else known[row.id][1]
                stored = StoredRow(row.id, row.text, encoded[i], row.source, when)
                named = {space.key: found[i].tolist() for space, found in checked.items()}
                points.append(_point(stored, digests[i], named))
            removed = [id_ for id_ in gone if id_ in known]
            await self._write(points, removed)
        replaced = sum(rows[i].id in known for i in changed)
        return Written(0, len(changed) - replaced, replaced, len(rows) - len(changed), len(removed))

    async def delete(self, ids: Iterable[str]) -> Written:
        """Removes rows; ids that are not there are no mistake."""
        return await self.upsert((), {}, remove=ids)

    async def search(
        self, vector: Any, *, space: EmbeddingSpace, k: int = 10, filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The k best rows, best first; rows of the same score by their ids."""
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
            raise RequestError(f"k is {k}; it must be 1 to {MAX_K}", field="k")
        query = query_vector(space, vector).tolist()
        wanted = parse(filter, self._fields) if filter else None
        with _told(self._shown):
            await self._check_spaces({space: None}, needs_all=False)
            condition = None if wanted is None else models.Filter(must=[await self._condition(wanted)])
            given = models.SearchParams(exact=wanted is not None, hnsw_ef=max(64, 2 * k))
            params = given if self._is_server else None
            limit = k + 1
            while True:
                found = await self._client.query_points(
                    self._collection,
                    query=query,
                    using=space.key,
                    query_filter=condition,
                    search_params=params,
                    limit=limit,
                    with_payload=["id", "text", "metadata", "source", "time"],
                )
                # Of rows with the score of the last one all are needed to know whose ids come first.
                points = found.points
                if len(points) < limit or points[-1].score < points[k - 1].score:
                    break
                limit *= 4
        hits = [Hit(point.score, _stored(point.payload)) for point in points]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    async def count(self) -> int:
        """Rows that are there."""
        with _told(self._shown):
            if not await self._client.collection_exists(self._collection):
                return 0
            return int((await self._client.count(self._collection, exact=True)).count)

    async def _spaces(self) -> dict[str, models.VectorParams]:
        if not await self._client.collection_exists(self._collection):
            return {}
        found = (await self._client.get_collection(self._collection)).config.params.vectors
        return dict(found) if isinstance(found, dict) else {}

    async def _check_spaces(self, given: Mapping[EmbeddingSpace, Any], *, needs_all: bool) -> None:
        """No row is ever without a vector in any space."""
        known, keys = set(await self._spaces()), {space.key for space in given}
        for key in sorted(keys - known):
            shown = ", ".join(sorted(k[:12] for k in known)) or "none"
            raise RequestError(f"space {key[:12]} is not one of this collection ({shown})", field="space")
        for key in sorted(known - keys) if needs_all else ():
            raise RequestError(f"vectors of space {key[:12]} are missing", field="vectors")

    async def _known(self, ids: Sequence[str]) -> dict[str, tuple[str, float]]:
        """Digest and time of the rows that are there."""
        if not ids or not await self._client.collection_exists(self._collection):
            return {}
        points = [_point_id(id_) for id_ in ids]
        found = await self._client.retrieve(self._collection, points, with_payload=["id", "digest", "time"])
        payloads = [point.payload for point in found if point.payload]
        return {payload["id"]: (payload["digest"], float(payload["time"])) for payload in payloads}

    async def _write(self, points: list[models.PointStruct], removed: Sequence[str]) -> None:
        operations: list[Any] = []
        if points:
            operations.append(models.UpsertOperation(upsert=models.PointsList(points=points)))
        if removed:
            gone = models.PointIdsList(points=[_point_id(id_) for id_ in removed])
            operations.append(models.DeleteOperation(delete=gone))
        if operations:
            await self._client.batch_update_points(self._collection, operations, wait=True)

    async def _condition(self, wanted: Filter) -> Any:
        """A condition of Qdrant's."""
        if isinstance(wanted, Not):
            return models.Filter(must_not=[await self._condition(wanted.part)])
        if isinstance(wanted, In):
            return _has_any([equality(wanted.field, value) for value in wanted.values])
        if isinstance(wanted, Exists):
            return _has_any([existence(wanted.field)])
        if isinstance(wanted, Compare):
            return await self._compared(wanted)
        parts = [await self._condition(part) for part in wanted.parts]
        if isinstance(wanted, And):
            return models.Filter(must=parts)
        return models.Filter(should=parts) if parts else models.Filter()

    async def _compared(self, wanted: Compare) -> Any:
        if isinstance(wanted.value, str):
            return models.HasIdCondition(has_id=[point async for point in self._in_order(wanted)])
        bound = models.Range(**{wanted.operator[1:]: float(wanted.value)})
        of_field = models.FieldCondition(key="field", match=models.MatchValue(value=wanted.field))
        inside = models.Filter(must=[of_field, models.FieldCondition(key="value", range=bound)])
        return models.NestedCondition(nested=models.Nested(key="numbers", filter=inside))

    async def _in_order(self, wanted: Compare) -> AsyncIterator[Any]:
        """Points a text of whose field is so to the bound."""
        holds, start = _ORDER[wanted.operator], None
        while True:
            points, start = await self._client.scroll(
                self._collection,
                scroll_filter=models.Filter(must=[_has_any([existence(wanted.field)])]),
                limit=_PAGE,
                offset=start,
                with_payload=["id", "metadata", "source", "time"],
            )
            for point in points:
                payload = point.payload or {}
                fields = fields_of(payload["metadata"].encode(), id=payload["id"], source=payload["source"])
                texts = [each for each in plain_values(fields.get(wanted.field)) if isinstance(each, str)]
                if any(holds(text, wanted.value) for text in texts):
                    yield point.id
            if start is None:
                return


def _has_any(facts: list[str]) -> Any:
    if not facts:
        return models.HasIdCondition(has_id=[])
    return models.FieldCondition(key="facts", match=models.MatchAny(any=facts))


def _point_id(row: str) -> str:
    return str(uuid.uuid5(_IDS, row))


def _point(row: StoredRow, digest: str, vectors: dict[str, Any]) -> models.PointStruct:
    fields = fields_of(row.metadata, id=row.id, source=row.source, time=row.time)
    payload = {
        "id": row.id,
        "text": row.text,
        "metadata": row.metadata.decode(),
        "source": row.source,
        "time": row.time,
        "digest": digest,
        "facts": facts_of(fields),
        "numbers": numbers_of(fields),
    }
    return models.PointStruct(id=_point_id(row.id), vector=vectors, payload=payload)


def _stored(payload: Mapping[str, Any] | None) -> StoredRow:
    found = payload or {}
    return StoredRow(
        found["id"], found["text"], found["metadata"].encode(), found["source"], float(found["time"])
    )


@contextmanager
def _told(shown: str) -> Iterator[None]:
    """What Qdrant or the way to it says, as one line."""
    try:
        yield
    except AiriError:
        raise
    except UnexpectedResponse as error:
        said = msgspec.json.decode(error.content).get("status", {}) if error.content[:1] == b"{" else {}
        problem = said.get("error") if isinstance(said, dict) else None
        raise StateError(
            f"{shown}: {problem or error.reason_phrase or error.status_code}".splitlines()[0]
        ) from None
    except (ResponseHandlingException, ApiException, OSError) as error:
        raise StateError(f"{shown}: {error}".splitlines()[0]) from None
    except (ValueError, RuntimeError) as error:
        raise StateError(f"{shown}: {error}".splitlines()[0]) from None
