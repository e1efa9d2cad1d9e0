"""Records of requests: how many are kept, and how they are found."""

from __future__ import annotations

import gc
from typing import Any

from airi.observability.requests import Failure, ModelRecord, Recent, RequestRecord


class Request:
    """One whose record says nothing new."""

    def __init__(self, id: str, answer_id: str = "", **fields: Any) -> None:
        self.id, self.answer_id, self._fields = id, answer_id, fields
        self.at = 1769860800.25

    def told(self) -> RequestRecord:
        return RequestRecord(
            id=self.id,
            answer_id=self.answer_id,
            at="2026-01-31T12:00:00.250Z",
            tenant="acme",
            dialect="openai",
            path="/",
            **self._fields,
        )


def recent(*ids: str, **bounds: int) -> Recent[Request]:
    made: Recent[Request] = Recent(**bounds)
    for each in ids:
        request = Request(each, f"answer-{each}")
        made.begin(request)
        made.end(request)
    return made


def test_a_request_is_found_by_its_id_and_by_that_of_its_answer() -> None:
    calls = [ModelRecord(kind="chat", asked="m", error=Failure(status=429, code="full"))]
    whole = Request("one", "answer-one", status=429, calls=calls)
    kept = recent("zero")
    kept.begin(whole)
    kept.end(whole)
    assert kept.find("one") == kept.find("answer-one") == whole.told()
    assert kept.find("answer-zero") == Request("zero", "answer-zero").told()
    assert kept.find("two") is None
    assert recent("").find("") is None, "what has no id has not been asked for"


def test_one_that_runs_is_found_and_counts_for_no_bound() -> None:
    kept = recent("before", most=1)
    running = Request("now", running=True)
    kept.begin(running)
    found = kept.find("now")
    assert found is not None
    assert found.running
    assert len(kept) == 1
    kept.end(running)
    assert kept.find("before") is None
    assert len(kept) == 1


def test_the_last_so_many_are_kept() -> None:
    kept = recent(*map(str, range(100)), most=10)
    assert len(kept) == 10
    assert [kept.find(str(i)) is not None for i in range(100)] == [False] * 90 + [True] * 10


def test_of_so_many_bytes_together() -> None:
    sizes = [recent("1").num_bytes, recent("1", "2").num_bytes]
    assert sizes[1] == 2 * sizes[0]
    kept = recent(*(str(i % 10) for i in range(100)), most_bytes=5 * sizes[0] + 1)
    assert len(kept) == 5
    assert kept.num_bytes == 5 * sizes[0]
    large = Request("large", calls=[ModelRecord(asked="m" * 200) for _ in range(100)])
    kept.begin(large)
    kept.end(large)
    assert (len(kept), kept.num_bytes) == (0, 0), "one that is more than all may be is not kept"


def test_the_latest_of_several_with_one_id_is_told_and_the_others_are_named() -> None:
    kept = recent()
    for answer in ("first", "second", "third"):
        request = Request("same", answer)
        kept.begin(request)
        kept.end(request)
    found = kept.find("same")
    assert found is not None
    assert found.answer_id == "third"
    assert found.same_id == ["second", "first"]


def test_what_is_kept_is_no_work_for_the_garbage_collector() -> None:
    kept = recent(*map(str, range(5000)))
    gc.collect()
    before = len(gc.get_objects())
    del kept
    assert before - len(gc.get_objects()) < 100
