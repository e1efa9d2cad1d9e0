"""The lines of requests as the state has them: which release each is served with, and its rollout."""

from __future__ import annotations

from collections.abc import Container

import msgspec

from airi.errors import ConflictError, LifecycleError
from airi.lifecycle.rollouts import Line
from airi.state import Store

__all__ = ["Lines"]

_KIND = "line"


class Lines:
    """What all gateways follow and the leader writes. What is read is as old as the last `refresh` or change.

    *Thread safety*: none; one event loop.
    """

    def __init__(self, store: Store, *, only: Container[str] | None = None) -> None:
        """`only`: the names of those that there are; others in the state are of configs of the past."""
        self._store, self._only = store, only
        self._seen = 0
        self._lines: dict[str, Line] = {}

    async def refresh(self) -> bool:
        """Reads what others have changed; whether there was anything. Raises StateError."""
        records, self._seen = await self._store.documents(_KIND, since=self._seen)
        for record in records:
            if self._only is None or record.name in self._only:
                self._keep(record.body, record.revision)
        return bool(records)

    @property
    def all(self) -> list[Line]:
        """Every line, by name."""
        return [self._lines[name] for name in sorted(self._lines)]

    def get(self, name: str) -> Line | None:
        """The line of this name, where there is one."""
        return self._lines.get(name)

    def find(self, name: str) -> Line:
        """The line of this name. Raises LifecycleError, which names those there are."""
        found = self._lines.get(name)
        if found is None:
            known = ", ".join(sorted(self._lines)) or "none"
            raise LifecycleError(f"there are no releases of {name!r}; there are of: {known}", field="line")
        return found

    async def put(self, line: Line) -> Line:
        """Keeps a line that was made from the one that was read. Raises ConflictError, then nothing was done."""
        body = msgspec.json.encode(msgspec.structs.replace(line, revision=0)).decode()
        revision = await self._store.put_document(_KIND, line.name, body, revision=line.revision)
        if revision is None:
            await self.refresh()
            raise ConflictError(
                f"{line.name} was changed by somebody else meanwhile; look again", field="line"
            )
        return self._keep(body, revision)

    def _keep(self, body: str, revision: int) -> Line:
        line = msgspec.structs.replace(msgspec.json.decode(body, type=Line), revision=revision)
        self._lines[line.name] = line
        return line
