"""Every backend keeps, refuses and finds the same; pgvector on a real PostgreSQL, Qdrant with or without a server."""

from __future__ import annotations

import importlib.util
import itertools
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.errors import RequestError, StateError
from airi.retrieval import Collection, Row
from airi.retrieval.backends import LocalBackend, PgvectorBackend, VectorBackend
from tests.retrieval.hashing import space
from tests.retrieval.test_filters import holds
from tests.state.postgres_server import PostgresServer, binaries, postgres_server

SPACE = space("one", 4)
FILTERS: list[dict[str, Any]] = [
    {"lang": "de"},
    {"lang": {"$ne": "de"}},
    {"lang": {"$in": ["de", "en", 1]}},
    {"lang": {"$nin": []}},
    {"lang": {"$in": []}},
    {"n": 3},
    {"n": {"$gt": 3, "$lte": 7}},
    {"n": {"$gt": "3"}},
    {"n": True},
    {"flag": True},
    {"tags": "red"},
    {"tags": {"$gt": "green"}},
    {"tags": {"$exists": True}},
    {"lang": None},
    {"deep.er": 2},
    {"lang": {"$not": {"$gte": "de"}}},
    {"$or": [{"n": 1}, {"$and": [{"flag": False}, {"$not": {"tags": "red"}}]}]},
    {"nowhere": {"$lt": 3}},
]
ROWS = [
    Row(
        id=f"row-{i:02}",
        text=f"text {i}",
        metadata={
            "n": i,
            "flag": i % 2 == 0,
            "lang": ["de", "en", "fr", None][i % 4],
            "deep": {"er": i % 5},
            **({"tags": [["red", "green"], ["blue"], []][i % 3]} if i % 7 else {}),
        },
        source=f"s{i % 2}",
        time=float(i),
    )
    for i in range(40)
]
VECTORS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
_numbers = itertools.count()


def _with_pgvector() -> Path | None:
    """Programs of a PostgreSQL that has the extension: the system's, or those of the package pgserver."""
    found = [binaries()]
    spec = importlib.util.find_spec("pgserver")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "pginstall" / "bin")
    for programs in found:
        if programs is None:
            continue
        shares = (programs.parent / "share", Path("/usr/share/postgresql") / programs.parent.name)
        if any(next(share.glob("**/extension/vector.control"), None) for share in shares if share.is_dir()):
            return programs
    return None


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    programs = _with_pgvector()
    if programs is None:
        message = "no PostgreSQL with pgvector is installed (package pgserver)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with postgres_server(programs) as running:
        yield running


@asynccontextmanager
async def opened(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VectorBackend]:
    backend: VectorBackend
    if kind == "local":
        backend = LocalBackend(Collection.open(tmp_path, "kb"))
    elif kind.startswith("qdrant"):
        pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
        from airi.retrieval.backends.qdrant import QdrantBackend

        location = ":memory:" if kind == "qdrant" else os.environ.get("QDRANT_URL", "")
        if not location:
            pytest.skip("no Qdrant runs: QDRANT_URL does not say where")
        backend = await QdrantBackend.open(location, f"kb-{uuid.uuid4()}")
    else:
        url = request.getfixturevalue("server").url()
        backend = await PgvectorBackend.open(url, f"kb-{next(_numbers)}")
    try:
        await backend.add_space(SPACE)
        yield backend
    finally:
        await backend.close()


each = pytest.mark.parametrize("kind", ["local", "pgvector", "qdrant", "qdrant server"])


@each
async def test_rows_are_found_by_their_scores(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    async with opened(kind, request, tmp_path) as backend:
        written = await backend.upsert(ROWS, {SPACE: VECTORS})
        assert (written.added, written.replaced, written.unchanged) == (40, 0, 0)
        assert await backend.count() == 40
        for query in VECTORS[:5]:
            scores = unit @ (query / np.linalg.norm(query))
            hits = await backend.search(query, space=SPACE, k=7)
            assert [hit.id for hit in hits] == [f"row-{i:02}" for i in np.argsort(-scores)[:7]]
            assert np.allclose([hit.score for hit in hits], np.sort(scores)[::-1][:7], atol=1e-5)
            best = ROWS[int(hits[0].id[4:])]
            assert (hits[0].text, hits[0].source, hits[0].time) == (best.text, best.source, best.time)
            assert hits[0].metadata == best.metadata


@each
async def test_filters_leave_what_they_mean(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with opened(kind, request, tmp_path) as backend:
        await backend.upsert(ROWS, {SPACE: VECTORS})
        for wanted in FILTERS:
            hits = await backend.search(VECTORS[0], space=SPACE, k=50, filter=wanted)
            assert {hit.id for hit in hits} == {row.id for row in ROWS if holds(wanted, row.metadata)}, wanted
        own: list[tuple[dict[str, Any], set[int]]] = [
            ({"id": {"$in": ["row-03", "none"]}}, {3}),
            ({"source": "s1", "time": {"$lt": 6}}, {1, 3, 5}),
            ({"time": {"$gte": 38}}, {38, 39}),
            ({"id": {"$lt": "row-02"}}, {0, 1}),
            ({"time": "3"}, set()),
        ]
        for wanted, ids in own:
            hits = await backend.search(VECTORS[0], space=SPACE, k=50, filter=wanted)
            assert {int(hit.id[4:]) for hit in hits} == ids, wanted


@each
async def test_rows_are_replaced_left_alone_and_removed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with opened(kind, request, tmp_path) as backend:
        await backend.upsert(ROWS, {SPACE: VECTORS})
        again = await backend.upsert(ROWS[:5], {SPACE: VECTORS[:5]})
        assert (again.added, again.replaced, again.unchanged) == (0, 0, 5)
        new = Row(id="row-00", text="other words")
        written = await backend.upsert([new], {SPACE: -VECTORS[:1]}, remove=["row-01", "row-00", "none"])
        assert (written.added, written.replaced, written.removed) == (0, 1, 1)
        hits = await backend.search(VECTORS[0], space=SPACE, k=50)
        assert len(hits) == 39
        assert (hits[-1].id, hits[-1].text, round(hits[-1].score, 4)) == ("row-00", "other words", -1.0)
        assert (await backend.delete(["row-02", "row-01"])).removed == 1
        assert await backend.count() == 38
        equal = np.tile(VECTORS[:1], (3, 1))
        await backend.upsert([Row(id=id_, text="a") for id_ in "cab"], {SPACE: equal})
        hits = await backend.search(VECTORS[0], space=SPACE, k=3)
        assert [hit.id for hit in hits] == ["a", "b", "c"]


@each
async def test_mistakes_are_refused_and_nothing_is_written(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with opened(kind, request, tmp_path) as backend:
        wrong: list[tuple[list[Row], Any, str]] = [
            (ROWS[:1], {SPACE: [[1, 2]]}, "have 2 numbers"),
            (ROWS[:1], {SPACE: [[1, 2, 3, float("nan")]]}, "is nan"),
            (ROWS[:1], {space("other"): np.ones((1, 16))}, "is not one of this collection"),
            (ROWS[:1], {}, "are missing"),
            ([Row(id="a", text=" ")], {SPACE: VECTORS[:1]}, "is empty"),
        ]
        for rows, vectors, message in wrong:
            with pytest.raises(RequestError, match=message):
                await backend.upsert(rows, vectors)
        assert await backend.count() == 0
        asks: list[tuple[dict[str, Any], str]] = [
            ({"vector": [1, 2], "space": SPACE}, "has the shape"),
            ({"vector": np.ones(16), "space": space("other")}, "is not one of this collection"),
            ({"vector": VECTORS[0], "space": SPACE, "k": 0}, "k is 0"),
            ({"vector": VECTORS[0], "space": SPACE, "filter": {"a": {"$gtt": 1}}}, "did you mean"),
        ]
        for asked, message in asks:
            with pytest.raises(RequestError, match=message):
                await backend.search(**asked)


async def test_as_many_rows_are_found_as_are_asked_for(server: PostgresServer) -> None:
    vectors = np.random.default_rng(1).standard_normal((2000, 4)).astype(np.float32)
    rows = [Row(id=f"{i:04}", text=f"text {i}") for i in range(2000)]
    # Otherwise tables as small as this one are read without the graph.
    backend = await PgvectorBackend.open(server.url() + "?enable_sort=off", "many")
    await backend.add_space(SPACE)
    await backend.upsert(rows, {SPACE: vectors})
    for k in (10, 400, 1500):
        assert len(await backend.search(vectors[0], space=SPACE, k=k)) == k
    await backend.delete(row.id for row in rows[:1900])
    assert len(await backend.search(vectors[0], space=SPACE, k=99)) == 99
    await backend.close()


@each
async def test_a_space_without_vectors_of_some_rows_is_not_searched(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with opened(kind, request, tmp_path) as backend:
        await backend.upsert(ROWS, {SPACE: VECTORS})
        other = space("other", 4)

        async def asked() -> None:
            await backend.add_space(other)
            await backend.search(VECTORS[0], space=other)

        with pytest.raises(RequestError, match="has no vectors of 40 of 40 rows"):
            await asked()


async def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(StateError, match=r"collection kb \(PostgreSQL\)") as refused:
        await PgvectorBackend.open("postgresql://airi:rain-on-tin@127.0.0.1:9/none", "kb")
    assert "rain-on-tin" not in str(refused.value)


async def test_text_that_ends_a_sql_string_is_only_text(server: PostgresServer) -> None:
    backend = await PgvectorBackend.open(server.url(), "it's; DROP TABLE airi_collection_rows; --")
    await backend.add_space(SPACE)
    evil = "x'); DROP TABLE airi_collection_rows; --"
    await backend.upsert([Row(id=evil, text=evil, metadata={evil: evil})], {SPACE: VECTORS[:1]})
    (hit,) = await backend.search(VECTORS[0], space=SPACE, filter={evil: evil, "id": evil})
    assert hit.text == evil
    with pytest.raises(RequestError, match="collection it's"):
        await backend.upsert([Row(id="nul", text="a\0b")], {SPACE: VECTORS[:1]})
    await backend.close()


async def test_a_folder_of_qdrant_keeps_rows_and_each_row_its_first_time(tmp_path: Path) -> None:
    from airi.retrieval.backends.qdrant import QdrantBackend

    row = Row(id="a", text="text")
    for _ in range(2):
        backend = await QdrantBackend.open(str(tmp_path / "kept"), "kb")
        await backend.add_space(SPACE)
        await backend.upsert([row], {SPACE: VECTORS[:1]})
        (hit,) = await backend.search(VECTORS[0], space=SPACE)
        first = hit.time
        await backend.upsert([row], {SPACE: VECTORS[:1]})
        (hit,) = await backend.search(VECTORS[0], space=SPACE)
        assert hit.time == first
        await backend.close()


async def test_spaces_of_qdrant_are_searched_each_by_its_own_vectors() -> None:
    from airi.retrieval.backends.qdrant import QdrantBackend

    backend = await QdrantBackend.open(":memory:", "kb")
    other = space("other", 3)
    for each_space in (SPACE, other, SPACE):
        await backend.add_space(each_space)
    rows = [Row(id="a", text="a"), Row(id="b", text="b")]
    await backend.upsert(rows, {SPACE: np.eye(4)[:2], other: np.eye(3)[[1, 0]]})
    assert [hit.id for hit in await backend.search(np.eye(4)[0], space=SPACE)] == ["a", "b"]
    assert [hit.id for hit in await backend.search(np.eye(3)[0], space=other)] == ["b", "a"]
    with pytest.raises(RequestError, match="are missing"):
        await backend.upsert(rows, {SPACE: np.eye(4)[:2]})
    await backend.close()


async def test_a_qdrant_that_does_not_answer_is_one_line() -> None:
    from airi.retrieval.backends.qdrant import QdrantBackend

    with pytest.raises(StateError, match=r"collection kb \(Qdrant\): ") as refused:
        await QdrantBackend.open("http://127.0.0.1:9", "kb")
    assert "\n" not in str(refused.value)
