"""Versions and releases over both databases: what they are never changes, and what stands follows the table."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec.structs import replace

from airi.errors import ConflictError, ReleaseError, VersionError
from airi.lifecycle import MOVES, Registry, ReleaseBook, VersionState, misfits
from airi.state import Store, open_store

from .world import version


@pytest_asyncio.fixture
async def store(state_url: str) -> AsyncIterator[Store]:
    async with await open_store(state_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def registry(store: Store) -> Registry:
    return Registry(store, lambda: 7)


async def test_a_version_is_its_content(registry: Registry) -> None:
    first = await registry.register(version("general", "g1"))
    assert (first.state, first.name, first.revision) == (VersionState.REGISTERED, "general@g1", 1)
    assert await registry.register(version("general", "g1")) == first
    with pytest.raises(VersionError, match=r"general@g1 is sha256:generalg1, .* needs another id"):
        await registry.register(replace(version("general", "g1"), digest="sha256:other"))
    assert registry.find("general", "g1") == first
    with pytest.raises(VersionError, match="general has no version 'g9'; registered: g1"):
        registry.find("general", "g9")


@pytest.mark.parametrize("state", VersionState)
async def test_only_what_the_table_has_may_follow(registry: Registry, state: VersionState) -> None:
    seen: dict[VersionState, tuple[VersionState, ...]] = {VersionState.REGISTERED: ()}
    ways = [VersionState.REGISTERED]
    for way in ways:
        for to in sorted(MOVES[way]):
            if to not in seen:
                seen[to] = (*seen[way], to)
                ways.append(to)
    assert set(seen) == set(VersionState)
    at = await registry.register(version("m", "v"))
    for to in seen[state]:
        at = await registry.move(at, to)
    for to in VersionState:
        if to not in MOVES[state]:
            with pytest.raises(VersionError, match=f"m@v is {state} and cannot become {to}"):
                await registry.move(at, to)
    for to in sorted(MOVES[state]):
        assert (await Registry(registry._store, lambda: 9).refresh()) is True
        moved = await registry.move(at, to, reason="said so")
        assert (moved.state, moved.reason, moved.since_ms) == (to, "said so", 7)
        break


async def test_of_two_at_once_one_is_told(store: Store) -> None:
    one, other = Registry(store, lambda: 0), Registry(store, lambda: 0)
    await one.register(version("m", "v"))
    await other.refresh()
    seen = other.find("m", "v")
    await one.move(seen, VersionState.LOADING)
    with pytest.raises(ConflictError, match="m@v has become loading meanwhile"):
        await other.move(seen, VersionState.RETIRED)
    assert other.find("m", "v").state is VersionState.LOADING


async def test_a_release_holds_together(store: Store, registry: Registry) -> None:
    for each in (
        version("general", "g1"),
        version("general", "g2"),
        version("domain", "d4", compatible_with={"general": ("g1",)}),
        version("embedder", "e2", dimensions=1024),
        version("reader", "r1", dimensions=768),
    ):
        await registry.register(each)
    book = ReleaseBook(store, registry)
    made = await book.make("support", "1", {"general": "g1", "domain": "d4"})
    assert await book.make("support", "1", {"domain": "d4", "general": "g1"}) == made
    assert [v.name for v in book.members(made)] == ["domain@d4", "general@g1"]
    again = ReleaseBook(store, registry)
    assert await again.refresh()
    assert again.find("support", "1") == made

    with pytest.raises(ReleaseError, match="domain@d4 was made for general g1, not g2"):
        await book.make("support", "2", {"general": "g2", "domain": "d4"})
    with pytest.raises(ReleaseError, match="embeds in 1024 dimensions, reader@r1 in 768"):
        await book.make("support", "2", {"embedder": "e2", "reader": "r1"})
    with pytest.raises(ReleaseError, match="general has no version 'g7'; registered: g1, g2"):
        await book.make("support", "2", {"general": "g7"})
    with pytest.raises(ReleaseError, match="has no members"):
        await book.make("support", "2", {})
    with pytest.raises(ConflictError, match="release 1 of support is domain@d4, general@g1 already"):
        await book.make("support", "1", {"general": "g2"})
    await registry.move(registry.find("general", "g2"), VersionState.RETIRED)
    with pytest.raises(ReleaseError, match="general@g2 is retired"):
        await book.make("support", "2", {"general": "g2"})
    assert [r.id for r in book.of("support")] == ["1"]
    with pytest.raises(ReleaseError, match="support has no release '3'; there are: 1"):
        book.find("support", "3")


def test_what_is_not_known_fits() -> None:
    assert (
        misfits([version("a", "1"), version("b", "1", dimensions=3), version("c", "1", dimensions=3)]) == []
    )
