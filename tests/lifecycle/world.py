"""A world for lifecycle: a state that is lost at any write, engines that take their time, a clock that is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from airi.errors import AiriError, EngineDeadError, MemoryBudgetError
from airi.lifecycle import Facts, Registry, ReleaseBook, Version
from airi.lifecycle.controller import Controller
from airi.lifecycle.lease import Lease
from airi.lifecycle.lines import Lines
from airi.lifecycle.observed import Seen
from airi.lifecycle.rollouts import Rollout
from airi.state import DocumentRecord

LINGER_MS = 5_000
LEASE_MS = 9_000


class Killed(BaseException):
    """The process ends here."""


class MemoryState:
    """The documents of a state, as `Store` has them; ends the process before or after the write that is due."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[int, str, int]] = {}
        self.changes = 0
        self.kill_in: int | None = None
        """Half writes until the process ends: an even number ends it before one, an odd one after it."""
        self.was_killed = False

    async def documents(self, kind: str, *, since: int = 0) -> tuple[list[DocumentRecord], int]:
        found = [
            DocumentRecord(kind=k, name=name, revision=row[0], body=row[1])
            for (k, name), row in sorted(self.rows.items())
            if k == kind and row[2] > since
        ]
        return found, self.changes

    async def document(self, kind: str, name: str) -> DocumentRecord | None:
        row = self.rows.get((kind, name))
        return None if row is None else DocumentRecord(kind=kind, name=name, revision=row[0], body=row[1])

    async def put_document(self, kind: str, name: str, body: str, *, revision: int) -> int | None:
        self._step()
        now = self.rows.get((kind, name), (0, "", 0))[0]
        if now != revision:
            return None
        self.changes += 1
        self.rows[kind, name] = (now + 1, body, self.changes)
        self._step()
        return now + 1

    async def forget_document(self, kind: str, name: str, *, revision: int) -> bool:
        if self.rows.get((kind, name), (0, "", 0))[0] != revision:
            return False
        del self.rows[kind, name]
        return True

    def _step(self) -> None:
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.was_killed = True
                raise Killed


class Engines:
    """Engines, which live on when a control process ends, and die by themselves."""

    def __init__(self, room: int = 4) -> None:
        self.held: set[str] = set()
        self.lost: set[str] = set()
        """What they held when they died, and do not hold again yet."""
        self.broken: set[str] = set()
        self.error: Exception | None = None
        """What a load of what is broken fails with, where it is not AIRI's own error."""
        self.room = room
        self.slow: dict[str, asyncio.Event] = {}
        """What a load or an unload of a version waits for."""
        self.unknown: set[str] = set()
        """What the config does not have."""
        self.sleepable = False
        self.sleeping: set[str] = set()
        self.deaths = 0
        self.gone: list[str] = []
        """What they were told to let go, in that order."""

    def die(self, *names: str) -> None:
        """They start again, with nothing; or one of several dies, with these."""
        self.deaths += 1
        gone = self.held & set(names or self.held)
        self.lost |= gone
        self.held -= gone
        self.sleeping -= gone

    def knows(self, version: Version) -> bool:
        return version.name not in self.unknown

    def loaded(self) -> frozenset[str]:
        return frozenset(self.held)

    def asleep(self) -> frozenset[str]:
        return frozenset(self.sleeping)

    def can_sleep(self, version: Version) -> bool:
        return self.sleepable

    async def sleep(self, version: Version) -> None:
        await self._wait(version)
        if version.name in self.broken:
            raise MemoryBudgetError(f"the host has no room for the weights of {version.name}")
        self.sleeping.add(version.name)

    async def load(self, version: Version) -> None:
        await self._wait(version)
        if version.name in self.broken:
            raise self.error or AiriError(f"{version.name} is broken")
        if len(self.held - {version.name}) >= self.room:
            raise MemoryBudgetError(f"{version.name} needs 1 GiB more than there is")
        self.held.add(version.name)
        self.sleeping.discard(version.name)
        self.lost.discard(version.name)

    async def unload(self, version: Version) -> None:
        self.gone.append(version.name)
        await self._wait(version)
        self.held.discard(version.name)
        self.sleeping.discard(version.name)

    async def _wait(self, version: Version) -> None:
        deaths = self.deaths
        await asyncio.sleep(0)
        if version.name in self.slow:
            await self.slow[version.name].wait()
        if self.deaths != deaths:
            raise EngineDeadError("the engine has died")


class Notes:
    """What was seen of each release."""

    def __init__(self) -> None:
        self.stable, self.candidate = Seen(), Seen()

    async def of(self, rollout: Rollout, *, at_weight: bool = False) -> tuple[Seen, Seen]:
        return self.stable, self.candidate


class Process:
    """A control process over a state and engines."""

    def __init__(self, holder: str, state: Any, engines: Any, notes: Any, now_ms: Callable[[], int]) -> None:
        self.registry = Registry(state, now_ms)
        self.releases = ReleaseBook(state, self.registry)
        self.lines = Lines(state)
        self.controller = Controller(
            lease=Lease(state, "lifecycle", holder, LEASE_MS),
            registry=self.registry,
            releases=self.releases,
            lines=self.lines,
            fleet=engines,
            observations=notes,
            now_ms=now_ms,
            linger_ms=LINGER_MS,
        )

    async def refresh(self) -> None:
        await self.registry.refresh()
        await self.releases.refresh()
        await self.lines.refresh()


def version(model: str, id: str, **facts: Any) -> Version:
    return Version(
        model=model, id=id, source=f"./{model}-{id}", digest=f"sha256:{model}{id}", facts=Facts(**facts)
    )
