"""A collection does what a dictionary and numpy do, whatever is asked of it in whatever order, and through restarts."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airi.retrieval import Collection, EmbeddingSpace, Row
from tests.retrieval.hashing import space

FIRST = space("first", 3, normalisation="none")
SECOND = space("second", 2, normalisation="none")
ids = st.sampled_from([f"row-{i}" for i in range(12)])
numbers = st.integers(-3, 3)
vectors = {
    FIRST: st.tuples(numbers, numbers, numbers),
    SECOND: st.tuples(numbers, numbers),
}
new_rows = st.fixed_dictionaries(
    {
        "id": ids,
        "word": st.sampled_from(["red", "green", "blue"]),
        "n": st.integers(0, 4),
        FIRST.key: vectors[FIRST],
        SECOND.key: vectors[SECOND],
    }
)
Model = dict[str, dict[str, Any]]


class Machine(RuleBasedStateMachine):
    """`model` is what is there; `moments` what was there at each snapshot."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="airi-collection-")
        self.collection = Collection.open(self.folder, "kb")
        self.model: Model = {}
        self.moments: dict[int, tuple[Model, EmbeddingSpace]] = {}
        self.spaces = [FIRST]
        self.active = FIRST
        self.previous: EmbeddingSpace | None = None
        self.collection.add_space(FIRST)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.collection.close()
            shutil.rmtree(self.folder)

    # -- changes -------------------------------------------------------------------------------

    @rule(
        rows=st.lists(new_rows, max_size=5, unique_by=lambda row: row["id"]),
        removed=st.lists(ids, max_size=2),
    )
    def upsert(self, rows: list[dict[str, Any]], removed: list[str]) -> None:
        given = [Row(id=row["id"], text=row["word"], metadata={"n": row["n"]}) for row in rows]
        found = {
            s: np.array([row[s.key] for row in rows], np.float32).reshape(len(rows), s.dimension)
            for s in self.spaces
        }
        written = self.collection.upsert(given, found, remove=removed)
        new = {row["id"] for row in rows} - set(self.model)
        gone = {id_ for id_ in removed if id_ in self.model} - {row["id"] for row in rows}
        same = [row for row in rows if self._is_same(row)]
        assert (written.added, written.removed) == (len(new), len(gone))
        assert (written.unchanged, written.replaced) == (len(same), len(rows) - len(new) - len(same))
        for id_ in gone:
            del self.model[id_]
        self.model |= {row["id"]: row for row in rows}

    def _is_same(self, row: dict[str, Any]) -> bool:
        before = self.model.get(row["id"])
        keys = ("word", "n", *(s.key for s in self.spaces))
        return before is not None and all(before[key] == row[key] for key in keys)

    @rule(removed=st.lists(ids, max_size=3))
    def delete(self, removed: list[str]) -> None:
        there = {id_ for id_ in removed if id_ in self.model}
        assert self.collection.delete(removed).removed == len(there)
        for id_ in there:
            del self.model[id_]

    @precondition(lambda self: len(self.spaces) == 1)
    @rule()
    def add_second_space(self) -> None:
        self.collection.add_space(SECOND)
        self.spaces.append(SECOND)
        owner = self

        class FromModel:
            space = SECOND

            def encode(self, texts: Any) -> Any:
                # Rows come in the order in which they were written last, which numbers say.
                view = owner.collection._current()
                slots = [s for s in range(view.count) if not view.spaces[SECOND.key].has[s]]
                live = [s for s in slots if view.live is None or view.live[s]]
                rows = [owner.model[view.memory.ids[s]][SECOND.key] for s in live[: len(texts)]]
                return np.array(rows, np.float32)

        while self.collection.fill(FromModel(), 4):
            pass

    @precondition(lambda self: len(self.spaces) == 2)
    @rule()
    def cut_over(self) -> None:
        self.collection.cut_over(SECOND)
        if self.active != SECOND:
            self.active, self.previous = SECOND, self.active

    @precondition(lambda self: self.previous is not None)
    @rule()
    def roll_back(self) -> None:
        self.collection.roll_back()
        assert self.previous is not None
        self.active, self.previous = self.previous, self.active

    @rule()
    def reopen(self) -> None:
        self.collection.close()
        self.collection = Collection.open(self.folder, "kb")

    @rule()
    def compact(self) -> None:
        self.collection._compact(lambda memory: None)

    @rule()
    def snapshot(self) -> None:
        self.moments[self.collection.snapshot().number] = (dict(self.model), self.active)

    # -- what is seen --------------------------------------------------------------------------

    @rule(k=st.integers(1, 6), least=st.none() | st.integers(0, 4), data=st.data())
    def search(self, k: int, least: int | None, data: st.DataObject) -> None:
        found_in = data.draw(st.sampled_from(self.spaces))
        self._compare(None, self.model, found_in, k, least, data.draw(vectors[found_in]))

    @precondition(lambda self: self.moments)
    @rule(k=st.integers(1, 6), least=st.none() | st.integers(0, 4), data=st.data())
    def search_earlier(self, k: int, least: int | None, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(self.moments)))
        model, active = self.moments[at]
        self._compare(at, model, active, k, least, data.draw(vectors[active]))

    def _compare(
        self, at: int | None, model: Model, found_in: EmbeddingSpace, k: int, least: int | None, query: Any
    ) -> None:
        rows = [row for row in model.values() if least is None or row["n"] >= least]
        scores = {row["id"]: float(np.dot(row[found_in.key], query)) for row in rows}
        if not any(query):
            return  # refused where lengths must be 1, and of no use elsewhere
        wanted = sorted(scores, key=lambda id_: (-scores[id_], id_))[:k]
        found = self.collection.search(
            query, space=found_in, k=k, filter=None if least is None else {"n": {"$gte": least}}, at=at
        )
        assert [hit.id for hit in found] == wanted
        assert [hit.score for hit in found] == [scores[id_] for id_ in wanted]
        assert [(hit.text, hit.metadata) for hit in found] == [
            (model[id_]["word"], {"n": model[id_]["n"]}) for id_ in wanted
        ]

    @rule(word=st.sampled_from(["red", "green", "blue"]))
    def search_words(self, word: str) -> None:
        found = {hit.id for hit in self.collection.search(text=word, k=20)}
        assert found == {row["id"] for row in self.model.values() if row["word"] == word}

    @invariant()
    def counts_are_right(self) -> None:
        if hasattr(self, "collection"):
            stats = self.collection.stats()
            assert stats["rows"] == len(self.model)
            assert stats["active"] == self.active.key
            pending = {s["pending"] for s in stats["spaces"].values()}
            assert pending == {0}


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCollectionAgainstModel = Machine.TestCase


def test_moments_are_those_of_the_clock_too() -> None:
    with tempfile.TemporaryDirectory() as folder, Collection.open(folder, "kb") as collection:
        collection.add_space(FIRST)
        moments = []
        for number in itertools.islice(itertools.count(1), 3):
            collection.upsert([Row(id=str(number), text="a")], {FIRST: [[1, 2, number]]})
            moments.append(collection.snapshot())
        for count, moment in enumerate(moments, 1):
            at = collection.snapshot_at(moment.time)
            hits = collection.search([1, 1, 1], space=FIRST, at=at)
            assert len(hits) >= count  # moments of one tick of the clock are one
            assert len(collection.search([1, 1, 1], space=FIRST, at=moment)) == count
