"""A release: one version of every model that a line of requests uses, held together by a digest.

A line is what requests name: a model, an alias or a workflow. Whoever is given a release keeps it for all inner calls,
so what fits together is checked once, when it is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations

import msgspec

from airi.errors import ConflictError, ReleaseError, VersionError
from airi.lifecycle.documents import read_each
from airi.lifecycle.registry import Registry, Version
from airi.lifecycle.states import VersionState
from airi.state import Store

__all__ = ["Release", "ReleaseBook", "misfits"]

_KIND = "release"


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What a line uses, by content."""

    line: str
    id: str
    members: dict[str, str]
    """By model, the version's id."""
    digest: str
    """SHA-256 over the members with the digests of their content."""


def misfits(versions: Iterable[Version]) -> list[str]:
    """Why these versions do not belong together, one line each; empty where they do.

    What a version declares (`compatible_with`) must hold in both directions, and embedders share one embedding space.
    """
    members = list(versions)
    found = []
    for one in members:
        for other in members:
            fitting = one.facts.compatible_with.get(other.model)
            if fitting is not None and other.id not in fitting:
                found.append(f"{one.name} was made for {other.model} {', '.join(fitting)}, not {other.id}")
    for one, other in combinations((v for v in members if v.facts.dimensions is not None), 2):
        if one.facts.dimensions != other.facts.dimensions:
            found.append(
                f"{one.name} embeds in {one.facts.dimensions} dimensions, {other.name} in {other.facts.dimensions}"
            )
    return found


class ReleaseBook:
    """The releases of every line, as the state has them.

    *Thread safety*: none; one event loop.
    *Invariant*: a release that is in the book fits together, and its members are never exchanged.
    """

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry
        self._seen = 0
        self._releases: dict[tuple[str, str], Release] = {}
        self._unread: dict[str, str] = {}

    async def refresh(self) -> bool:
        """Reads what others have added; whether there was anything. Raises StateError."""
        records, seen = await self._store.documents(_KIND, since=self._seen)
        read_each(
            records, lambda record: self._keep(msgspec.json.decode(record.body, type=Release)), self._unread
        )
        self._seen = seen
        return bool(records)

    def find(self, line: str, release: str) -> Release:
        """The release of this id. Raises ReleaseError, which names those there are."""
        found = self._releases.get((line, release))
        why = self._unread.get(f"{line}/{release}")
        if found is None and why is not None:
            raise ReleaseError(f"release {release} of {line} cannot be read: {why}", field="release")
        if found is None:
            known = ", ".join(one.id for one in self.of(line)) or "none"
            raise ReleaseError(f"{line} has no release {release!r}; there are: {known}", field="release")
        return found

    def of(self, line: str) -> list[Release]:
        """The releases of a line, by id."""
        return sorted((r for r in self._releases.values() if r.line == line), key=lambda r: r.id)

    def members(self, release: Release) -> list[Version]:
        """The versions of a release, by model. Raises VersionError for one that is not registered."""
        return [self._registry.find(model, version) for model, version in sorted(release.members.items())]

    async def make(self, line: str, release: str, members: Mapping[str, str]) -> Release:
        """Locks versions together under an id. The same again is the same release.

        Raises ReleaseError for members that are not registered, or do not fit together, for new ones that are retired,
        and for an id that names others already; and StateError.
        """
        if not members:
            raise ReleaseError(f"release {release} of {line} has no members; one at least", field="members")
        try:
            versions = [self._registry.find(model, version) for model, version in sorted(members.items())]
        except VersionError as error:
            raise ReleaseError(f"release {release} of {line}: {error}", field="members") from None
        wrong = misfits(versions)
        if (line, release) not in self._releases:
            wrong = [f"{v.name} is retired" for v in versions if v.state is VersionState.RETIRED] + wrong
        if wrong:
            raise ReleaseError(f"release {release} of {line}: {'; '.join(wrong)}", field="members")
        made = Release(line=line, id=release, members=dict(sorted(members.items())), digest=_digest(versions))
        body = msgspec.json.encode(made).decode()
        if await self._store.put_document(_KIND, f"{line}/{release}", body, revision=0) is None:
            await self.refresh()
            known = self.find(line, release)
            if known != made:
                was = ", ".join(f"{model}@{version}" for model, version in known.members.items())
                raise ConflictError(
                    f"release {release} of {line} is {was} already; other members need another id",
                    field="release",
                )
        self._keep(made)
        return made

    def _keep(self, release: Release) -> None:
        self._releases[release.line, release.id] = release


def _digest(versions: Iterable[Version]) -> str:
    lines = "".join(f"{version.name}\0{version.digest}\n" for version in versions)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
