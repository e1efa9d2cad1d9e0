"""Records of requests: how many are kept, and how they are found."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from airi.observability.requests import Failure, ModelRecord, Recent, RequestRecord


class Request:
    """One whose record says nothing new."""

    def __init__(
        self, id: str, answer_id: str = "", *, tenant: str = "acme", own_id: str = "", **fields: Any
    ) -> None:
        self.id, self.answer_id, self._fields = id, answer_id, fields
        self.tenant, self.own_id = tenant, own_id or f"own-{answer_id or id}"
        self.at = 1769860800.25

    def told(self) -> RequestRecord:
        return RequestRecord(
            id=self.id,
            own_id=self.own_id,
            answer_id=self.answer_id,
            at="2026-01-31T12:00:00.250Z",
            tenant=self.tenant,
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
    assert (found.same_id, found.num_same_id) == (["own-second", "own-first"], 2)


def test_one_that_runs_hides_no_later_one_and_each_is_found_by_the_gateways_own_id() -> None:
    kept = recent()
    hides = Request("same", "slow", running=True)
    kept.begin(hides)
    for i in range(30):
        later = Request("same", own_id=f"own-{i}")  # its call was refused: there is no answer
        later.at += 1 + i
        kept.begin(later)
        kept.end(later)
    found = kept.find("same")
    assert found is not None
    assert found.own_id == "own-29"
    assert found.same_id == [f"own-{i}" for i in range(28, 8, -1)]
    assert found.num_same_id == 30
    for name in ("own-slow", "own-3"):
        one = kept.find(name)
        assert one is not None
        assert (one.own_id, one.num_same_id) == (name, 0)
    taken = Request("own-3")  # a client may call its request as another one is called here
    taken.at += 99
    kept.begin(taken)
    other = kept.find("own-3")
    assert other is not None
    assert (other.own_id, other.num_same_id) == ("own-3", 1)


@pytest.mark.parametrize("bound", ["most", "most_bytes"])
def test_a_tenant_with_many_requests_drops_none_of_anothers(bound: str) -> None:
    size = recent("1").num_bytes
    kept = recent(**{bound: 20 if bound == "most" else 20 * size + 19})

    def add(tenant: str, *ids: str) -> None:
        for each in ids:
            request = Request(each, f"answer-{each}", tenant=tenant)
            kept.begin(request)
            kept.end(request)

    add("quiet", "a", "b")
    add("loud", *(str(i % 10) for i in range(100)))
    found = kept.find("a")
    assert found is not None
    assert found.tenant == "quiet"
    assert len(kept) == 20
    add("other", *(str(i % 10) for i in range(100)))
    assert kept.find("b") is not None
    assert len(kept) == 20
    for i in range(40):  # nobody has more than a quarter at the end, and the oldest ones make way
        add(f"t-{i:02d}", "x")
    assert kept.find("a") is None
    assert len(kept) == 20


def test_what_is_kept_is_no_work_for_the_garbage_collector() -> None:
    kept = recent(*map(str, range(5000)))
    gc.collect()
    before = len(gc.get_objects())
    del kept
    assert before - len(gc.get_objects()) < 100
