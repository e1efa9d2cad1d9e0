"""Documents of the state, over SQLite and over PostgreSQL: replaced only by who has seen the latest revision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from airi.state import DocumentRecord, Store, open_store


@pytest_asyncio.fixture
async def store(state_url: str) -> AsyncIterator[Store]:
    async with await open_store(state_url) as opened:
        yield opened


async def test_a_document_is_replaced_only_by_who_has_seen_it(store: Store) -> None:
    assert await store.document("line", "general") is None
    assert await store.put_document("line", "general", "one", revision=3) is None
    assert await store.put_document("line", "general", "one", revision=0) == 1
    assert await store.put_document("line", "general", "two", revision=0) is None
    assert await store.put_document("line", "general", "two", revision=1) == 2
    assert await store.put_document("line", "general", "three", revision=1) is None
    found = await store.document("line", "general")
    assert found == DocumentRecord(kind="line", name="general", revision=2, body="two")


async def test_a_document_is_dropped_only_by_who_has_seen_it_and_may_come_again(store: Store) -> None:
    assert not await store.forget_document("line", "general", revision=0)
    await store.put_document("line", "general", "one", revision=0)
    await store.put_document("line", "general", "two", revision=1)
    _, count = await store.documents("line")
    assert not await store.forget_document("line", "general", revision=1)
    assert not await store.forget_document("release", "general", revision=2)
    assert await store.forget_document("line", "general", revision=2)
    assert await store.document("line", "general") is None
    assert await store.put_document("line", "general", "three", revision=2) is None
    assert await store.put_document("line", "general", "three", revision=0) == 1
    found, _ = await store.documents("line", since=count)
    assert [one.body for one in found] == ["three"]


async def test_only_documents_of_a_kind_changed_since_a_count_are_read(store: Store) -> None:
    for name in ("b", "a"):
        await store.put_document("line", name, name, revision=0)
    await store.put_document("release", "a", "other", revision=0)
    found, count = await store.documents("line")
    assert [(one.name, one.body) for one in found] == [("a", "a"), ("b", "b")]
    assert await store.documents("line", since=count) == ([], count)
    await store.put_document("line", "b", "new", revision=1)
    found, later = await store.documents("line", since=count)
    assert [(one.name, one.body, one.revision) for one in found] == [("b", "new", 2)]
    assert later > count


async def test_of_many_who_replace_a_document_at_once_one_does(store: Store) -> None:
    await store.put_document("line", "a", "0", revision=0)
    tried = await asyncio.gather(*(store.put_document("line", "a", str(i), revision=1) for i in range(20)))
    assert sorted(filter(None, tried)) == [2]
