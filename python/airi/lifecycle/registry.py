"""The versions of every model: what each is by content, and where it stands.

A version's content never changes: its digest is part of its record from the first day, and whatever has another digest
is another version. Records are kept in the state; each change is made on the latest revision of one, so that of two
operators at once one is told that the other was first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from airi.errors import ConflictError, VersionError
from airi.lifecycle.documents import read_each
from airi.lifecycle.states import LIVE, MOVES, VersionState
from airi.state import Store

__all__ = ["Facts", "Registry", "Version"]

_KIND = "version"


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What of a version must fit the others of a release; what is not known is left out, and fits anything."""

    tokenizer: str | None = None
    """SHA-256 of its tokenizer.json."""
    dimensions: int | None = None
    """Of an embedder's vectors."""
    weights_bytes: int | None = None
    """What its weights take on a device."""
    compatible_with: dict[str, tuple[str, ...]] = {}
    """By model, the versions that it was made for; models that are not named fit."""


class Version(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of one model."""

    model: str
    id: str
    source: str
    """A folder, hf://org/name@commit, models:/..., oci://..."""
    digest: str
    """Of its content: `sha256:...` of a folder's files, `commit:...` of a repository."""
    facts: Facts = Facts()
    state: VersionState = VersionState.REGISTERED
    reason: str = ""
    """Why it failed, or was let go."""
    since_ms: int = 0
    """When it came to where it stands."""
    tries: int = 0
    """How often it was begun to be loaded since it was last loaded, or last said to be loaded."""
    is_kept: bool = False
    """Whether an operator wants it loaded, also while no line needs it."""
    revision: int = 0
    """Of this record; 0 before it is kept."""

    @property
    def name(self) -> str:
        """What engines and metrics call it: `model@id`."""
        return version_name(self.model, self.id)

    @property
    def is_warm(self) -> bool:
        """Whether it can answer, and is to stay."""
        return self.state in (VersionState.READY, VersionState.SERVING)


def version_name(model: str, version: str) -> str:
    """What engines and metrics call a version of a model."""
    return f"{model}@{version}"


class Registry:
    """Versions as the state has them. What is read is as old as the last `refresh` or change through this object.

    *Thread safety*: none; one event loop.
    *Invariant*: of a version's record, what it is by content never changes, and its states follow `MOVES`.
    """

    def __init__(self, store: Store, now_ms: Callable[[], int]) -> None:
        self._store, self._now_ms = store, now_ms
        self._seen = 0
        self._versions: dict[str, Version] = {}
        self._unread: dict[str, str] = {}

    async def refresh(self) -> bool:
        """Reads what others have changed; whether there was anything. Raises StateError."""
        records, seen = await self._store.documents(_KIND, since=self._seen)
        read_each(records, lambda record: self._keep(record.body, record.revision), self._unread)
        self._seen = seen
        return bool(records)

    def versions(self, model: str | None = None) -> list[Version]:
        """All, or those of a model, by model and id."""
        found = (v for v in self._versions.values() if model in (None, v.model))
        return sorted(found, key=lambda v: (v.model, v.id))

    def find(self, model: str, version: str) -> Version:
        """The version of this id. Raises VersionError, which names those there are."""
        found = self._versions.get(version_name(model, version))
        if found is None:
            known = ", ".join(v.id for v in self.versions(model)) or "none"
            raise VersionError(f"{model} has no version {version!r}; registered: {known}", field="version")
        return found

    async def register(self, version: Version) -> Version:
        """Keeps a new version. One that is kept already, with the same content, stays as it is.

        Raises VersionError where its id names other content already, and StateError.
        """
        name = version.name
        body = msgspec.json.encode(version).decode()
        revision = await self._store.put_document(_KIND, name, body, revision=0)
        if revision is not None:
            return self._keep(body, revision)
        await self.refresh()
        if name not in self._versions:
            raise VersionError(
                f"the document of {name} cannot be read: {self._unread.get(name)}", field="version"
            )
        known = self._versions[name]
        if known.digest != version.digest:
            raise VersionError(
                f"{name} is {known.digest}, from {known.source}; {version.source} is {version.digest}: "
                "other content needs another id",
                field="digest",
            )
        return known

    async def move(self, version: Version, to: VersionState, *, reason: str = "") -> Version:
        """Another state for a version, which must stand as it was read.

        Raises VersionError for a state that may not follow, ConflictError where another was first, and StateError.
        """
        if to not in MOVES[version.state]:
            allowed = ", ".join(sorted(MOVES[version.state])) or "nothing"
            raise VersionError(
                f"{version.name} is {version.state} and cannot become {to}; next may be {allowed}",
                field="state",
            )
        if to is VersionState.RETIRED and version.is_kept:
            raise VersionError(
                f"{version.name} is kept loaded; it cannot be retired before it is unloaded", field="state"
            )
        tries = version.tries + 1 if to is VersionState.LOADING else 0
        return await self._replace(msgspec.structs.replace(version, state=to, reason=reason, tries=tries))

    async def keep(self, version: Version, *, kept: bool) -> Version:
        """An operator wants it loaded, or no more. One that had failed is tried again.

        Raises VersionError for one that is retired, ConflictError and StateError.
        """
        if version.state is VersionState.RETIRED:
            raise VersionError(f"{version.name} is retired; it is never loaded again", field="state")
        state = version.state
        if kept and state is VersionState.FAILED:
            state = VersionState.REGISTERED
        return await self._replace(msgspec.structs.replace(version, is_kept=kept, state=state, tries=0))

    async def disown(self, version: Version, reason: str) -> Version:
        """A version that was live is held by no engine any more: it is as it was before it was loaded.

        Raises ConflictError and StateError.
        """
        if version.state not in LIVE:
            return version
        return await self._replace(
            msgspec.structs.replace(version, state=VersionState.REGISTERED, reason=reason)
        )

    async def give_up(self, version: Version) -> Version:
        """A load that the process which began it ends, as it ends itself: it was no try.

        Raises ConflictError and StateError.
        """
        if version.state is not VersionState.LOADING:
            return version
        return await self._replace(
            msgspec.structs.replace(
                version,
                state=VersionState.REGISTERED,
                reason="whoever loaded it was stopped",
                tries=max(0, version.tries - 1),
            )
        )

    async def _replace(self, version: Version) -> Version:
        version = msgspec.structs.replace(version, since_ms=self._now_ms())
        body = msgspec.json.encode(version).decode()
        revision = await self._store.put_document(_KIND, version.name, body, revision=version.revision)
        if revision is None:
            await self.refresh()
            now = self._versions[version.name]
            raise ConflictError(f"{now.name} has become {now.state} meanwhile; look again", field="state")
        return self._keep(body, revision)

    def _keep(self, body: str, revision: int) -> Version:
        read: Any = msgspec.json.decode(body, type=Version)
        version: Version = msgspec.structs.replace(read, revision=revision)
        self._versions[version.name] = version
        return version
