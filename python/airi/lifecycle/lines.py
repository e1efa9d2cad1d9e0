"""The lines of requests as the state has them: which release each is served with, and its rollout."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

import msgspec

from airi.errors import ConflictError, LifecycleError
from airi.lifecycle.documents import read_each
from airi.lifecycle.rollouts import Line
from airi.state import Store

if TYPE_CHECKING:
    from airi.state import DocumentRecord

__all__ = ["Lines"]

_KIND = "line"


class _Stable(msgspec.Struct):
    """What every version of AIRI can read of a line."""

    stable: str


class Lines:
    """What all gateways follow and the leader writes. What is read is as old as the last `refresh` or change.

    *Thread safety*: none; one event loop.
    """

    def __init__(self, store: Store, *, only: Container[str] | None = None) -> None:
        """`only`: the names of those that there are; others in the state are of other configs."""
        self._store, self._only = store, only
        self._seen = 0
        self._lines: dict[str, Line] = {}
        self.unread: dict[str, str] = {}
        """By name, why a line's document could not be read; it stays as it was, and cannot be changed."""

    async def refresh(self) -> bool:
        """Reads what others have changed; whether there was anything. Raises StateError."""
        records, seen = await self._store.documents(_KIND, since=self._seen)
        read_each(records, self._read, self.unread)
        self._seen = seen
        return bool(records)

    @property
    def all(self) -> list[Line]:
        """Every line, by name."""
        return [self._lines[name] for name in sorted(self._lines) if self._has(name)]

    @property
    def others(self) -> list[Line]:
        """Every line that there is not here, by name: other gateways may serve them still, or already."""
        return [self._lines[name] for name in sorted(self._lines) if not self._has(name)]

    def get(self, name: str) -> Line | None:
        """The line of this name, where there is one."""
        return self._lines.get(name) if self._has(name) else None

    def find(self, name: str) -> Line:
        """The line of this name. Raises LifecycleError, which names those there are."""
        found = self.get(name)
        if found is None and name in self.unread:
            raise LifecycleError(f"the document of {name} cannot be read: {self.unread[name]}", field="line")
        if found is None:
            known = ", ".join(line.name for line in self.all) or "none"
            raise LifecycleError(f"there are no releases of {name!r}; there are of: {known}", field="line")
        return found

    async def put(self, line: Line) -> Line:
        """Keeps a line that was made from the one that was read. Raises ConflictError, then nothing was done, and
        LifecycleError where the latest one cannot be read."""
        if line.name in self.unread:
            raise LifecycleError(
                f"{line.name} cannot be changed here, its document cannot be read: {self.unread[line.name]}",
                field="line",
            )
        body = msgspec.json.encode(msgspec.structs.replace(line, revision=0)).decode()
        revision = await self._store.put_document(_KIND, line.name, body, revision=line.revision)
        if revision is None:
            await self.refresh()
            raise ConflictError(
                f"{line.name} was changed by somebody else meanwhile; look again", field="line"
            )
        return self._keep(body, revision)

    def _has(self, name: str) -> bool:
        return self._only is None or name in self._only

    def _read(self, record: DocumentRecord) -> None:
        try:
            self._keep(record.body, record.revision)
        except msgspec.MsgspecError:
            # Whoever was never told more serves what is stable.
            if record.name not in self._lines:
                stable = msgspec.json.decode(record.body, type=_Stable)
                self._lines[record.name] = Line(name=record.name, stable=stable.stable)
            raise

    def _keep(self, body: str, revision: int) -> Line:
        line = msgspec.structs.replace(msgspec.json.decode(body, type=Line), revision=revision)
        self._lines[line.name] = line
        return line
