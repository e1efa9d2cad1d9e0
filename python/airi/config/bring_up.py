"""From a config to the documents of its versions, releases and lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from airi.config.load import ConfigFile
from airi.config.rollouts import first_stable, releases_of
from airi.errors import ConfigFileError, ConflictError
from airi.lifecycle import Registry, ReleaseBook
from airi.lifecycle.lines import Lines
from airi.lifecycle.registry import version_name
from airi.lifecycle.rollouts import Line
from airi.lifecycle.states import VersionState

if TYPE_CHECKING:
    from airi.config.lock import Locked
    from airi.state import Store

__all__ = ["bring_up", "now_ms"]

_LOADED = (VersionState.READY, VersionState.SERVING, VersionState.DRAINING)


def now_ms() -> int:
    """What documents have as the time: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


async def bring_up(
    file: ConfigFile, locked: Mapping[str, Locked], store: Store
) -> dict[str, tuple[str, ...]]:
    """Keeps all that a config says of releases, and gives the versions that an engine begins with, by model.

    Those are the members of each line's stable release, and of a candidate that was loaded when the last control
    process was. `locked`: what each version is by content, by `MODEL@ID`. Raises VersionError for a version whose
    content is another than it was, ReleaseError for a release that is another, ConfigFileError for a line that is
    served with what the config does not have any more, and StateError.
    """
    config = file.config
    registry = Registry(store, now_ms)
    book, lines = ReleaseBook(store, registry), Lines(store, only=releases_of(config))
    for each in (registry, book, lines):
        await each.refresh()
    for model in config.versioned:
        for version in model.versions:
            digest = _digest(locked[version_name(model.name, version.id)])
            await registry.register(version.known_as(model.name, digest=digest))
    for line, releases in releases_of(config).items():
        for release, members in releases.items():
            await book.make(line, release, members)
        if lines.get(line) is None:
            with suppress(ConflictError):  # another gateway was first, whatever its config said is stable
                await lines.put(Line(name=line, stable=first_stable(config, line)))
    known = {(model.name, version.id) for model in config.versioned for version in model.versions}
    needed: dict[str, dict[str, None]] = {model.name: {} for model in config.versioned}
    for name in releases_of(config):
        for member, id in _needed(lines.find(name), registry, book):
            if (member, id) not in known:
                raise _missing(file, lines.find(name), member, id)
            needed[member].setdefault(id)
    return {model: tuple(ids) for model, ids in needed.items()}


def _digest(locked: Locked) -> str:
    return f"commit:{locked.commit}" if locked.commit is not None else f"sha256:{locked.sha256}"


def _needed(line: Line, registry: Registry, book: ReleaseBook) -> Iterator[tuple[str, str]]:
    """Models and the ids of their versions."""
    yield from book.find(line.name, line.stable).members.items()
    candidate = line.split.candidate
    if candidate is not None:
        release = book.find(line.name, candidate)
        # One that was never loaded, or was being when the last process ended, might not fit or end this one, too; and
        # stable must be served all the same.
        if all(version.state in _LOADED for version in book.members(release)):
            yield from release.members.items()


def _missing(file: ConfigFile, line: Line, model: str, version: str) -> ConfigFileError:
    known = [each.name for each in file.config.models]
    path: tuple[str | int, ...] = ("models",)
    if model in known:
        path = ("models", known.index(model), "versions")
    release = line.stable if line.split.candidate is None else f"{line.stable} or {line.split.candidate}"
    accepted = f"{version} of {model} among them: {line.name} is served with release {release}"
    return ConfigFileError([file.mistake(path, accepted, value="without it")])
