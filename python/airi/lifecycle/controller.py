"""What moves rollouts on: looks, decides by `advance`, keeps the decision, and has models loaded and let go.

All it knows is in documents and in the fleet, so any gateway can take over from one that was killed, wherever it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from airi.errors import AiriError, ConflictError
from airi.lifecycle.gates import Change, judge_all
from airi.lifecycle.lease import Lease
from airi.lifecycle.lines import Lines
from airi.lifecycle.machine import Candidate, advance
from airi.lifecycle.observed import Seen
from airi.lifecycle.registry import Registry, Version
from airi.lifecycle.releases import ReleaseBook
from airi.lifecycle.rollouts import Line, Rollout
from airi.lifecycle.states import LIVE, VersionState

__all__ = ["ChangeOf", "Controller", "Fleet", "Observations"]

log = logging.getLogger("airi.lifecycle")

_WARM = (VersionState.READY, VersionState.SERVING)


class Fleet(Protocol):
    """The engines, as far as rollouts need them. Calls raise AiriError, and then nothing has changed."""

    def loaded(self) -> frozenset[str]:
        """Names of the versions that engines hold and that answer."""
        ...

    async def load(self, version: Version) -> None:
        """Loads and warms a version where there is memory for it beside all that is loaded; returns when it is warm."""
        ...

    async def unload(self, version: Version) -> None:
        """Lets a version go once its last request has ended."""
        ...


class Observations(Protocol):
    """What all gateways have seen."""

    async def of(self, rollout: Rollout) -> tuple[Seen, Seen]:
        """Of the stable release and of the candidate, since the rollout began. Raises StateError."""
        ...


ChangeOf = Callable[[Sequence[tuple[Version, Version]]], Change | None]
"""How far apart these are, the furthest of them; None while that is not known."""


class Controller:
    """Moves all lines on, as long as it holds the lease.

    *Thread safety*: none; one event loop.
    *Invariant*: a version that a line may give to requests is never let go.
    """

    def __init__(
        self,
        *,
        lease: Lease,
        registry: Registry,
        releases: ReleaseBook,
        lines: Lines,
        fleet: Fleet,
        observations: Observations,
        now_ms: Callable[[], int],
        linger_ms: int,
        change_of: ChangeOf = lambda _: None,
    ) -> None:
        """`linger_ms`: how long a version stays that gets no more requests, for sessions that have begun with it.
        `change_of`: what gates go by whose bounds are `auto`."""
        self._lease, self._registry, self._releases, self._lines = lease, registry, releases, lines
        self._fleet, self._observations = fleet, observations
        self._now_ms, self._linger_ms, self._change_of = now_ms, linger_ms, change_of
        self._moving: dict[str, asyncio.Task[None]] = {}

    async def tick(self) -> bool:
        """One look at everything; whether this process leads. Raises StateError."""
        if not await self._lease.hold(self._now_ms()):
            return False
        await self._registry.refresh()
        await self._releases.refresh()
        await self._lines.refresh()
        for version in self._registry.versions():
            await self._try(self._compare(version))
        for line in self._lines.all:
            await self._try(self._advance(line))
        given, needed = self._given()
        for version in self._registry.versions():
            await self._try(
                self._settle(version, is_given=version.name in given, is_needed=version.name in needed)
            )
        return True

    async def close(self) -> None:
        """Gives the lease to whoever is next."""
        for task in self._moving.values():
            task.cancel()
        await asyncio.gather(*self._moving.values(), return_exceptions=True)
        await self._lease.release(self._now_ms())

    # -- lines -----------------------------------------------------------------------------------

    async def _advance(self, line: Line) -> None:
        rollout = line.rollout
        if rollout is None or rollout.phase.ended:
            return
        members = self._releases.members(self._releases.find(line.name, rollout.candidate))
        failed = [f"{v.name}: {v.reason}" for v in members if v.state is VersionState.FAILED]
        candidate = Candidate(all(v.state in _WARM for v in members), "; ".join(failed))
        stable, tried = await self._observations.of(rollout)
        findings = judge_all(rollout.gates, stable, tried, self._change(line.name, rollout))
        after = advance(line, self._now_ms(), candidate, findings)
        if after is not line:
            await self._lines.put(after)
            if after.rollout is not None and after.rollout.events != rollout.events:
                log.info("%s: %s", line.name, after.rollout.events[-1].what)

    def _change(self, line: str, rollout: Rollout) -> Change | None:
        if not any(gate.is_auto for gates in rollout.gates.values() for gate in gates):
            return None
        before, after = (
            {version.model: version for version in self._releases.members(self._releases.find(line, release))}
            for release in (rollout.stable, rollout.candidate)
        )
        if before.keys() != after.keys():
            return Change.NEW_BASE
        return self._change_of(
            [(before[model], after[model]) for model in before if before[model] != after[model]]
        )

    # -- versions ----------------------------------------------------------------------------------

    async def _compare(self, version: Version) -> None:
        """Puts a state right that is not what engines hold: a process has gone, theirs or one that led before."""
        if version.name in self._moving:
            return
        is_held = version.name in self._fleet.loaded()
        if version.state in LIVE and not is_held:
            await self._registry.disown(version, "no engine holds it any more")
        elif is_held and version.state in (
            VersionState.REGISTERED,
            VersionState.FAILED,
            VersionState.LOADING,
        ):
            if version.state is not VersionState.LOADING:
                version = await self._registry.move(version, VersionState.LOADING)
            await self._registry.move(version, VersionState.READY)

    async def _settle(self, version: Version, *, is_given: bool, is_needed: bool) -> None:
        """What lines may give to requests serves; what none does any more drains for a while, and goes."""
        state = version.state
        is_due = self._now_ms() - version.since_ms >= self._linger_ms
        if version.name in self._moving:
            return
        if (state is VersionState.REGISTERED and is_needed) or (
            state is VersionState.FAILED and is_given and is_due
        ):
            self._begin(version, self._load)
        elif state is VersionState.DRAINING and is_needed:
            await self._registry.move(version, VersionState.READY)
        elif state is VersionState.READY and is_given:
            await self._registry.move(version, VersionState.SERVING)
        elif state is VersionState.SERVING and not is_given:
            await self._registry.move(version, VersionState.DRAINING)
        elif not is_needed and (state is VersionState.READY or (state is VersionState.DRAINING and is_due)):
            self._begin(version, self._let_go)

    async def _try(self, look: Awaitable[None]) -> None:
        try:
            await look
        except ConflictError as error:
            log.info("%s", error)  # an operator was first; the next look sees what was said

    def _begin(self, version: Version, move: Callable[[Version], Awaitable[None]]) -> None:
        """Loads or lets go beside the ticks, one thing at a time for each version."""

        async def run() -> None:
            try:
                await move(version)
            except AiriError as error:
                log.warning("%s: %s", version.name, error)
            finally:
                del self._moving[version.name]

        if version.name not in self._moving:
            self._moving[version.name] = asyncio.create_task(run())

    async def _load(self, version: Version) -> None:
        loading = await self._registry.move(version, VersionState.LOADING)
        try:
            await self._fleet.load(loading)
        except AiriError as error:
            await self._registry.move(loading, VersionState.FAILED, reason=str(error))
        else:
            await self._registry.move(loading, VersionState.READY)

    async def _let_go(self, version: Version) -> None:
        await self._fleet.unload(version)
        await self._registry.move(version, VersionState.REGISTERED)

    def _given(self) -> tuple[set[str], set[str]]:
        """Names of versions that requests may be given now, and of those with what a rollout needs besides."""
        given: set[str] = set()
        needed = {version.name for version in self._registry.versions() if version.is_kept}
        for line in self._lines.all:
            split = line.split
            given |= self._names(line.name, (split.stable,))
            if split.candidate is not None:
                (given if split.weight > 0 else needed).update(self._names(line.name, (split.candidate,)))
        return given, given | needed

    def _names(self, line: str, releases: Iterable[str]) -> set[str]:
        found = (self._releases.find(line, release) for release in releases)
        return {version.name for release in found for version in self._releases.members(release)}
