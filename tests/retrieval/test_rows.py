"""What cannot be kept is refused in one line before anything is written; what is written is there whole."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.errors import RequestError, StateError
from airi.retrieval import Collection, Row
from tests.retrieval.hashing import HashingEmbedder, space

SPACE = space("one", 4)


@pytest.fixture
def collection(tmp_path: Path) -> Any:
    with Collection.open(tmp_path, "kb") as opened:
        opened.add_space(SPACE)
        yield opened


def rows_of(*ids: str) -> list[Row]:
    return [Row(id=id_, text=f"text of {id_}") for id_ in ids]


GOOD = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("row", "vector", "message"),
    [
        (Row(id="", text="a"), GOOD, r"rows\[1\]\.id is ''; it must be a text of 1 to 512 characters"),
        (Row(id="x" * 513, text="a"), GOOD, r"rows\[1\]\.id is 'xxx"),
        (Row(id="good", text="a"), GOOD, r"rows\[1\]\.id 'good' is that of rows\[0\], too"),
        (Row(id="b", text=" \n"), GOOD, r"rows\[1\]\.text of row 'b' is empty"),
        (Row(id="b", text="\ud800"), GOOD, r"rows\[1\]\.text of row 'b' has half a surrogate pair"),
        (Row(id="b", text="a", time=float("nan")), GOOD, r"rows\[1\]\.time of row 'b' is nan"),
        (
            Row(id="b", text="a", metadata={"f": float("inf")}),
            GOOD,
            r"rows\[1\]\.metadata\.f of row 'b' is inf",
        ),
        (Row(id="b", text="a", metadata={"f": {"$g": 1}}), GOOD, r"metadata\.f of row 'b' has the key '\$g'"),
        (Row(id="b", text="a", metadata={"f": 2**60}), GOOD, r"whole ones up to 2\^53"),
        (Row(id="b", text="a", metadata={"f": "\ud800"}), GOOD, r"metadata of row 'b' has half a surrogate"),
        (Row(id="b", text="a", metadata={"source": "x"}), GOOD, r"has 'source', which is a field of rows"),
        (Row(id="b", text="a"), [1, 2, 3], r"vectors must be \[rows, dimension\] numbers"),
        (
            Row(id="b", text="a"),
            [1, 2, float("nan"), 4],
            r"vectors\[1\]\[2\] of row 'b' is nan; it must be a finite",
        ),
        (Row(id="b", text="a"), [1, 2, 3, 1e39], r"vectors\[1\]\[3\] of row 'b' is inf"),
        (Row(id="b", text="a"), [0, 0, 0, 0], r"vectors\[1\] of row 'b' is all zeros"),
    ],
)
def test_a_row_that_cannot_be_kept_is_named_and_nothing_is_written(
    collection: Collection, row: Row, vector: list[float], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        collection.upsert([*rows_of("good"), row], {SPACE: [GOOD, vector]})
    assert "\n" not in str(refused.value)
    assert collection.stats()["rows"] == 0
    assert collection.snapshot().number == 1


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({SPACE: [[1, 2, 3]]}, "have 3 numbers; those of space .* have 4"),
        ({SPACE: [GOOD, GOOD]}, r"have the shape \(2, 4\); there are 1 rows"),
        ({SPACE: "words"}, "must be"),
        ({space("other"): [GOOD]}, "is not one of this collection"),
        ({}, "vectors of space .* are missing, which is the active one"),
    ],
)
def test_vectors_of_another_space_or_shape_are_refused(
    collection: Collection, vectors: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        collection.upsert(rows_of("a"), vectors)
    assert collection.stats()["rows"] == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "a search needs a vector, a text, or both"),
        ({"vector": GOOD}, "space is missing"),
        ({"vector": [1, 2], "space": SPACE}, r"vector has the shape \(2,\)"),
        ({"vector": [1, 2, 3, float("nan")], "space": SPACE}, "is nan"),
        ({"vector": [0, 0, 0, 0], "space": SPACE}, "all zeros"),
        ({"vector": GOOD, "space": space("other")}, "is not one of this collection"),
        ({"vector": GOOD, "space": SPACE, "k": 0}, "k is 0; it must be 1 to 10000"),
        ({"vector": GOOD, "space": SPACE, "mmr": 2}, "mmr is 2; it must be 0 to 1"),
        ({"text": "a", "mmr": 0.5}, "mmr needs a vector"),
        ({"text": "a", "fusion": "max"}, "fusion is 'max'"),
        ({"text": "a", "at": 17}, "snapshot 17 is not one of this collection"),
    ],
)
def test_a_search_that_cannot_be_made_says_why(
    collection: Collection, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        collection.search(**asked)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "x" * 65, "a b"])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="collection name"):
        Collection.open(tmp_path, name)


def test_files_that_are_no_collections_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "kb.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StateError, match=r"collection kb \(.*kb.db\): the file is no SQLite database"):
        Collection.open(tmp_path, "kb")
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="collection kb"):
        Collection.open(tmp_path / "file", "kb")


def test_tables_of_a_later_version_are_refused(tmp_path: Path) -> None:
    Collection.open(tmp_path, "kb").close()
    connection = sqlite3.connect(tmp_path / "kb.db")
    connection.execute("UPDATE meta SET value = 9 WHERE key = 'version'")
    connection.commit()
    connection.close()
    with pytest.raises(StateError, match="its tables are of version 9; this AIRI knows 1"):
        Collection.open(tmp_path, "kb")


def test_the_same_rows_again_change_nothing_and_are_not_embedded(tmp_path: Path) -> None:
    embedder = HashingEmbedder()
    with Collection.open(tmp_path, "kb") as collection:
        collection.attach(embedder)
        collection.upsert(rows_of("a", "b"))
        before = collection.snapshot()
        written = collection.upsert([*rows_of("a"), Row(id="b", text="new words")])
        assert (written.unchanged, written.replaced, embedder.texts) == (1, 1, 3)
        assert collection.upsert(rows_of("a")).snapshot == before.number + 1
        (hit,) = collection.search(embedder.encode(["new words"])[0], space=embedder.space, k=1)
        assert (hit.id, round(hit.score, 5)) == ("b", 1.0)


def test_a_full_disk_keeps_nothing_of_a_batch_and_what_was_there(collection: Collection) -> None:
    collection.upsert(rows_of("a"), {SPACE: [GOOD]})
    database = collection._store.database
    ((pages,),) = database.writer.execute("PRAGMA page_count").fetchall()
    database.writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    many = [Row(id=str(i), text="long text " * 50) for i in range(500)]
    with pytest.raises(StateError, match=r"collection kb .*: the disk is full; nothing of this was kept"):
        collection.upsert(many, {SPACE: [GOOD] * 500})
    assert [hit.id for hit in collection.search(GOOD, space=SPACE)] == ["a"]
    assert [hit.id for hit in collection.search(text="text")] == ["a"]
    database.writer.execute("PRAGMA max_page_count = 1073741823")
    collection.upsert(many, {SPACE: [GOOD] * 500})
    assert collection.stats()["rows"] == 501


_FULL = """
import resource, signal, sys
from airi.errors import StateError
from airi.retrieval import Collection, Row
from tests.retrieval.hashing import HashingEmbedder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
collection = Collection.open(sys.argv[1], "kb")
collection.attach(HashingEmbedder())
collection.upsert([Row(id="a", text="first words")])
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
done = 0
try:
    while True:
        collection.upsert([Row(id=f"{done}-{i}", text=f"text {i} " * 40) for i in range(20)])
        done += 1
except StateError as error:
    print(done, error)
assert collection.search(text="first")[0].id == "a"
"""

_WRITER = """
import sys
from airi.retrieval import Collection, Row
from tests.retrieval.hashing import HashingEmbedder

collection = Collection.open(sys.argv[1], "kb")
collection.attach(HashingEmbedder())
batch = int(sys.argv[2])
while True:
    rows = [Row(id=f"row-{i}", text=f"batch {batch} row {i}", metadata={"batch": batch}) for i in range(20)]
    collection.upsert(rows)
    batch += 1
    print(batch, flush=True)
"""


def _started(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": _PATH}
    )


_PATH = os.pathsep.join(path for path in ("python", ".", os.environ.get("PYTHONPATH", "")) if path)


def test_a_file_that_cannot_grow_loses_no_batch_that_was_kept(tmp_path: Path) -> None:
    process = _started(_FULL, str(tmp_path))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    done, message = output.split(" ", 1)
    assert int(done) > 0
    assert message.startswith("collection kb")
    with Collection.open(tmp_path, "kb") as collection:
        assert collection.stats()["rows"] == 1 + 20 * int(done)


def test_a_writer_that_is_killed_leaves_whole_batches(tmp_path: Path) -> None:
    said = 0
    for turn in range(3):
        process = _started(_WRITER, str(tmp_path), str(said))
        assert process.stdout is not None
        for _ in range(3 + turn):
            said = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        said = int(rest[-1]) if rest else said
        with Collection.open(tmp_path, "kb") as collection:
            vector = HashingEmbedder().encode(["batch"])[0]
            hits = collection.search(vector, space=HashingEmbedder().space, k=50)
            batches = {hit.metadata["batch"] for hit in hits}
            assert len(hits) == 20
            assert len(batches) == 1
            assert batches.pop() >= said - 1  # what was said is kept; one more may be
            assert len(collection.search(text="row", k=50)) == 20


def test_another_process_is_seen(tmp_path: Path) -> None:
    with Collection.open(tmp_path, "kb") as first, Collection.open(tmp_path, "kb") as second:
        first.add_space(SPACE)
        first.upsert(rows_of("a", "b"), {SPACE: [GOOD, GOOD]})
        at = second.snapshot()
        first.delete(["a"])
        moment = first.snapshot()
        assert [hit.id for hit in second.search(GOOD, space=SPACE, at=moment)] == ["b"]
        assert [hit.id for hit in second.search(GOOD, space=SPACE, at=at)] == ["a", "b"]
        first.upsert(rows_of("c"), {SPACE: [GOOD]})
        give_up = time.monotonic() + 60
        while [hit.id for hit in second.search(GOOD, space=SPACE)] != ["b", "c"]:
            assert time.monotonic() < give_up


def test_closed_collections_say_so(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path, "kb")
    collection.close()
    with pytest.raises(StateError, match="is closed"):
        collection.upsert(rows_of("a"))


@pytest.mark.parametrize("matrix", ["float16", "int8"])
def test_fewer_bits_find_nearly_the_same(tmp_path: Path, matrix: Any) -> None:
    from airi.retrieval import IndexOptions

    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((300, 4)).astype(np.float32)
    with Collection.open(tmp_path, "kb", options=IndexOptions(matrix=matrix)) as collection:
        collection.add_space(SPACE)
        collection.upsert(rows_of(*map(str, range(300))), {SPACE: vectors})
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for query in unit[:20]:
            scores = unit @ query
            hits = collection.search(query, space=SPACE)
            least = np.sort(scores)[-10]
            for hit in hits:
                assert abs(hit.score - scores[int(hit.id)]) < 0.02
                assert scores[int(hit.id)] > least - 0.04
    if matrix == "float16":
        with Collection.open(tmp_path, "wide", options=IndexOptions(matrix=matrix)) as collection:
            wide = space("wide", 4, normalisation="none")
            collection.add_space(wide)
            with pytest.raises(RequestError, match=r"vectors\[0\] of row 'a' has numbers beyond 65504"):
                collection.upsert(rows_of("a"), {wide: [[1e6, 0, 0, 0]]})
