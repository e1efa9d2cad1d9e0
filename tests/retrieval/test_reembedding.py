"""A new space is filled while rows change and others search, and takes over whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from airi.errors import RequestError, StateError
from airi.retrieval import Collection, Reembedding, Row
from airi.retrieval.spaces import Vectors
from tests.retrieval.hashing import HashingEmbedder, space
from tests.retrieval.test_rows import _PATH

OLD, NEW = HashingEmbedder("old", 8), HashingEmbedder("new", 12)


def rows_of(numbers: range, word: str = "row") -> list[Row]:
    return [Row(id=f"r{i}", text=f"{word} number{i}") for i in numbers]


def is_right(collection: Collection, embedder: HashingEmbedder, text: str, id_: str) -> bool:
    """Whether the row whose text it is comes first, with the score of equal vectors."""
    (hit,) = collection.search(embedder.encode([text])[0], space=embedder.space, k=1)
    return hit.id == id_ and abs(hit.score - 1) < 1e-4


def test_a_space_is_filled_and_taken_over_and_given_back(tmp_path: Path) -> None:
    with Collection.open(tmp_path, "kb") as collection:
        collection.attach(OLD)
        collection.upsert(rows_of(range(50)))
        with pytest.raises(RequestError, match="there is no space to roll back to"):
            collection.roll_back()
        collection.add_space(NEW.space)
        with pytest.raises(RequestError, match="50 rows have no vector in this space"):
            collection.cut_over(NEW.space)
        with pytest.raises(
            RequestError, match="has no vectors of 50 of 50 rows at this moment: it is being filled"
        ):
            collection.search(NEW.encode(["row"])[0], space=NEW.space)
        before = collection.snapshot()
        with Reembedding(collection, NEW, batch=7) as job:
            collection.upsert(rows_of(range(40, 60), "changed"))
            collection.delete(["r0"])
            assert job.wait(60)
            assert job.progress().pending == 0
        assert collection.active == OLD.space
        collection.cut_over(NEW.space)
        assert collection.active == NEW.space
        assert is_right(collection, NEW, "changed number55", "r55")
        assert is_right(collection, OLD, "changed number55", "r55")  # who embedded before the cut-over
        collection.upsert(rows_of(range(60, 62)))
        collection.roll_back()
        assert collection.active == OLD.space
        assert is_right(collection, OLD, "row number61", "r61")
        collection.cut_over(NEW.space)
        assert collection.stats()["previous"] == OLD.space.key
        with pytest.raises(RequestError, match="has no vectors of 50 of 50 rows"):
            collection.search(NEW.encode(["row"])[0], space=NEW.space, at=before)
        assert len(collection.search(OLD.encode(["row"])[0], space=OLD.space, at=before, k=99)) == 50


def test_no_roll_back_to_a_space_that_lacks_rows(tmp_path: Path) -> None:
    with Collection.open(tmp_path, "kb") as collection:
        collection.attach(OLD)
        collection.upsert(rows_of(range(5)))
        with Reembedding(collection, NEW) as job:
            assert job.wait(60)
        collection.cut_over(NEW.space)
        collection.detach(OLD.space)
        collection.upsert(rows_of(range(5, 7)))
        with pytest.raises(RequestError, match="2 rows have no vector in this space"):
            collection.roll_back()
        with Reembedding(collection, OLD) as job:
            assert job.wait(60)
        collection.roll_back()
        assert is_right(collection, OLD, "row number6", "r6")


def test_a_dropped_space_is_gone_and_the_active_one_stays(tmp_path: Path) -> None:
    with Collection.open(tmp_path, "kb") as collection:
        collection.attach(OLD)
        collection.upsert(rows_of(range(5)))
        with Reembedding(collection, NEW) as job:
            assert job.wait(60)
        with pytest.raises(RequestError, match="the active space cannot be dropped"):
            collection.drop_space(OLD.space)
        collection.cut_over(NEW.space)
        collection.drop_space(OLD.space)
        with pytest.raises(RequestError, match="is not one of this collection"):
            collection.search(OLD.encode(["row"])[0], space=OLD.space)
        with pytest.raises(RequestError, match="there is no space to roll back to"):
            collection.roll_back()
        assert is_right(collection, NEW, "row number3", "r3")
        collection.upsert(rows_of(range(5, 6)))
        assert is_right(collection, NEW, "row number5", "r5")


def test_overlap_is_of_rows_with_both_vectors(tmp_path: Path) -> None:
    with Collection.open(tmp_path, "kb") as collection:
        first, same, other = space("a", 4), space("b", 4), space("c", 4)
        draw = np.random.default_rng(0)
        vectors, drawn = draw.standard_normal((2, 60, 4))
        collection.add_space(first)
        collection.add_space(same)
        collection.add_space(other)
        collection.upsert(rows_of(range(60)), {first: vectors, same: vectors, other: drawn})
        collection.upsert(rows_of(range(60, 70)), {first: drawn[:10]})
        assert collection.overlap(first, same, k=5) == 1.0
        assert collection.overlap(first, other, k=5) < 0.4


def test_an_embedder_that_fails_ends_the_job_and_nothing_else(tmp_path: Path) -> None:
    class Broken(HashingEmbedder):
        def encode(self, texts: Sequence[str]) -> Vectors:
            raise RuntimeError("no device")

    class Wide(HashingEmbedder):
        def encode(self, texts: Sequence[str]) -> Vectors:
            return np.ones((len(texts), 99), np.float32)

    with Collection.open(tmp_path, "kb") as collection:
        collection.attach(OLD)
        collection.upsert(rows_of(range(5)))
        with Reembedding(collection, Broken("new", 4)) as job, pytest.raises(StateError, match="no device"):
            job.wait(60)
        with (
            Reembedding(collection, Wide("wide", 4)) as job,
            pytest.raises(RequestError, match="have 99 numbers"),
        ):
            job.wait(60)
        assert is_right(collection, OLD, "row number3", "r3")


_FILLER = """
import sys, time
from airi.retrieval import Collection, Reembedding
from tests.retrieval.hashing import HashingEmbedder

class Slow(HashingEmbedder):
    def encode(self, texts):
        time.sleep(0.02)
        return super().encode(texts)

collection = Collection.open(sys.argv[1], "kb")
with Reembedding(collection, Slow("new", 12), batch=8) as job:
    while not job.wait(0.01):
        print(job.progress().pending, flush=True)
print("whole", flush=True)
"""


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    with Collection.open(tmp_path, "kb") as collection:
        collection.attach(OLD)
        collection.upsert(rows_of(range(400)))
        wrong: list[str] = []
        is_over = threading.Event()

        def ask() -> None:
            while not is_over.is_set():
                asked = (f"number{i}" for i in (0, 250, 399))
                wrong.extend(
                    n for n in asked if not is_right(collection, OLD, f"row {n}", n.replace("number", "r"))
                )

        asking = threading.Thread(target=ask)
        asking.start()
        lefts = [400]
        try:
            while True:
                environment = {**os.environ, "PYTHONPATH": _PATH}
                command = [sys.executable, "-c", _FILLER, str(tmp_path)]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
                assert process.stdout is not None
                said = ""
                for said in process.stdout:
                    if said != "whole\n" and int(said) <= lefts[-1] - 150:
                        process.send_signal(signal.SIGKILL)
                process.wait()
                process.stdout.close()
                lefts.append(collection._store.count_pending(collection._number(NEW.space)))
                if said == "whole\n":
                    break
                assert len(lefts) < 9
        finally:
            is_over.set()
            asking.join()
        assert wrong == []
        assert lefts[-1] == 0
        assert len(lefts) > 2  # it was killed
        assert lefts == sorted(lefts, reverse=True)
        collection.cut_over(NEW.space)
        for i in (0, 250, 399):
            assert is_right(collection, NEW, f"row number{i}", f"r{i}")
