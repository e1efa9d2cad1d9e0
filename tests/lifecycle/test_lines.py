"""Lines as documents: what cannot be read hides nothing else, and is not written over."""

from __future__ import annotations

import logging

import msgspec
import pytest

from airi.errors import LifecycleError, ReleaseError, VersionError
from airi.lifecycle import Registry, ReleaseBook
from airi.lifecycle.lines import Lines
from airi.lifecycle.rollouts import Line

from .world import MemoryState, version

UNKNOWN = (
    '{"name": "a", "stable": "2", "rollout": '
    '{"id": "r", "stable": "2", "candidate": "3", "steps": [{"type": "bake", "hours": 1}]}}'
)


async def put(state: MemoryState, kind: str, name: str, body: str, revision: int = 1) -> None:
    assert await state.put_document(kind, name, body, revision=revision) is not None


async def test_a_line_that_cannot_be_read_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    state = MemoryState()
    lines = Lines(state)  # type: ignore[arg-type]
    for name in "az":
        await lines.put(Line(name=name, stable="1"))
    await put(state, "line", "a", UNKNOWN)
    await put(state, "line", "z", msgspec.json.encode(Line(name="z", stable="2")).decode())
    with caplog.at_level(logging.ERROR):
        assert await lines.refresh()
        assert not await lines.refresh()
    assert [(line.name, line.stable) for line in lines.all] == [("a", "1"), ("z", "2")]
    (said,) = caplog.messages
    assert said.startswith(
        "line a of the state cannot be read, what is known of it stays: Invalid value 'bake'"
    )
    with pytest.raises(
        LifecycleError, match="a cannot be changed here, its document cannot be read: Invalid"
    ):
        await lines.put(lines.find("a"))
    await put(state, "line", "a", msgspec.json.encode(Line(name="a", stable="2")).decode(), revision=2)
    await lines.refresh()
    assert (lines.find("a").stable, lines.unread) == ("2", {})


async def test_who_starts_before_a_line_that_cannot_be_read_serves_what_is_stable() -> None:
    state = MemoryState()
    await put(state, "line", "a", UNKNOWN, revision=0)
    await put(state, "line", "b", "{}", revision=0)
    lines = Lines(state)  # type: ignore[arg-type]
    await lines.refresh()
    assert (lines.find("a").stable, lines.find("a").split.candidate) == ("2", None)
    with pytest.raises(LifecycleError, match=r"document of b cannot be read: .*stable"):
        lines.find("b")


async def test_versions_and_releases_that_cannot_be_read_are_named() -> None:
    state = MemoryState()
    await put(state, "version", "m@1", '{"model": "m", "id": "1", "state": "napping"}', revision=0)
    await put(state, "release", "m/1", '{"line": "m"}', revision=0)
    registry = Registry(state, lambda: 0)  # type: ignore[arg-type]
    releases = ReleaseBook(state, registry)  # type: ignore[arg-type]
    await registry.register(version("m", "2"))
    for documents in (registry, releases):
        await documents.refresh()
    assert [v.id for v in registry.versions()] == ["2"]
    with pytest.raises(VersionError, match="the document of m@1 cannot be read"):
        await registry.register(version("m", "1"))
    with pytest.raises(ReleaseError, match="release 1 of m cannot be read"):
        releases.find("m", "1")
