"""What moves rollouts on: looks, decides by `advance`, keeps the decision, and has models loaded and let go.

All it knows is in documents and in the fleet, so any gateway can take over from one that was killed, wherever it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from airi.errors import AiriError, ConflictError, LifecycleError, MemoryBudgetError, StateError
from airi.lifecycle.gates import Change
from airi.lifecycle.judging import findings_of
from airi.lifecycle.lease import Lease
from airi.lifecycle.lines import Lines
from airi.lifecycle.machine import Candidate, advance, waiting
from airi.lifecycle.observed import Seen
from airi.lifecycle.registry import Registry, Version
from airi.lifecycle.releases import ReleaseBook
from airi.lifecycle.rollouts import Line, Phase, Rollout
from airi.lifecycle.states import LIVE, MOVES, VersionState

__all__ = ["ChangeOf", "Controller", "Fleet", "Observations"]

log = logging.getLogger("airi.lifecycle")

_MOST_TRIES = 3
"""Of loads that end the process that leads, before nobody tries any more."""


class Fleet(Protocol):
    """The engines, as far as rollouts need them. Calls raise AiriError, and then nothing has changed."""

    def loaded(self) -> frozenset[str]:
        """Names of the versions that engines hold, those that sleep too."""
        ...

    def asleep(self) -> frozenset[str]:
        """Those of them that sleep."""
        ...

    def can_sleep(self, version: Version) -> bool:
        """Whether its memory can be lent to others."""
        ...

    def knows(self, version: Version) -> bool:
        """Whether this process's config has the version: what it does not have is somebody else's."""
        ...

    async def load(self, version: Version) -> None:
        """Loads and warms a version where there is memory for it beside all that is loaded; returns when it is warm.

        One that sleeps is woken in place of that. Raises MemoryBudgetError where it does not fit.
        """
        ...

    async def unload(self, version: Version) -> None:
        """Lets a version go once its last request has ended."""
        ...

    async def sleep(self, version: Version) -> None:
        """Puts a version to sleep once its last request has ended."""
        ...


class Observations(Protocol):
    """What all gateways have seen."""

    async def of(self, rollout: Rollout, *, at_weight: bool = False) -> tuple[Seen, Seen]:
        """Of the stable release and of the candidate: since the rollout began, or, `at_weight`, since its last weight
        was set. Raises StateError."""
        ...


ChangeOf = Callable[[Sequence[tuple[Version, Version]]], Change | None]
"""How far apart these are, the furthest of them; None while that is not known."""


class _Needs(NamedTuple):
    """Names of versions, by who needs them."""

    given: set[str]
    """Requests may be given them now."""
    needed: set[str]
    """Those, and what a rollout or an operator needs besides."""
    resting: set[str]
    """What a line was served with before: it comes back sooner from sleep."""
    others: set[str]
    """Needed by lines of the state that this process's config does not have: they stay where they are."""
    is_whole: bool
    """Whether all that lines need is known."""


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
        self._troubles: dict[str, str] = {}

    async def tick(self) -> bool:
        """One look at everything; whether this process leads. Raises StateError."""
        if not await self._lease.hold(self._now_ms()):
            return False
        await self._registry.refresh()
        await self._releases.refresh()
        await self._lines.refresh()
        for version in self._known():
            await self._try(version.name, self._compare(version))
        for line in self._lines.all:
            await self._try(line.name, self._advance(line))
        needs = self._needs()
        for version in self._known():
            await self._try(version.name, self._settle(version, needs))
        return True

    async def close(self) -> None:
        """Gives the lease to whoever is next."""
        moving = dict(self._moving)
        for task in moving.values():
            task.cancel()
        await asyncio.gather(*moving.values(), return_exceptions=True)
        try:
            for version in self._registry.versions():
                if version.name in moving:
                    with suppress(ConflictError):
                        await self._registry.give_up(version)
        finally:
            await self._lease.release(self._now_ms())

    # -- lines -----------------------------------------------------------------------------------

    async def _advance(self, line: Line) -> None:
        rollout = line.rollout
        if rollout is None or rollout.phase.ended:
            return
        members = self._members(line.name, rollout.candidate)
        unknown = [v.name for v in members if not self._fleet.knows(v)]
        if unknown:  # an older config leads still, or again: whoever has a newer one goes on
            after = waiting(line, rollout, f"a gateway that leads and whose config has {', '.join(unknown)}")
        else:
            candidate = Candidate.of(members, moving=self._moving)
            whole = await self._observations.of(rollout)
            now = await self._observations.of(rollout, at_weight=True)
            findings = findings_of(rollout, whole, now, self._change(line.name, rollout))
            after = advance(line, self._now_ms(), candidate, findings)
        if after is not line:
            await self._lines.put(after)
            if after.rollout is not None and after.rollout.events != rollout.events:
                log.info("%s: %s", line.name, after.rollout.events[-1].what)

    def _change(self, line: str, rollout: Rollout) -> Change | None:
        if not any(gate.is_auto for gates in rollout.gates.values() for gate in gates):
            return None
        before, after = (
            {version.model: version for version in self._members(line, release)}
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
        is_held, is_asleep = version.name in self._fleet.loaded(), version.name in self._fleet.asleep()
        if is_held and is_asleep:
            await self._found_asleep(version)
        elif version.state is VersionState.LOADING and not is_held and version.tries >= _MOST_TRIES:
            reason = f"{version.tries} times whoever loaded it has ended meanwhile"
            await self._registry.move(version, VersionState.FAILED, reason=reason)
        elif version.state in LIVE and not is_held:
            await self._registry.disown(version, "no engine holds it any more")
        elif is_held and version.state in (
            VersionState.REGISTERED,
            VersionState.FAILED,
            VersionState.LOADING,
            VersionState.ASLEEP,
        ):
            if version.state is not VersionState.LOADING:
                version = await self._registry.move(version, VersionState.LOADING)
            await self._registry.move(version, VersionState.READY)

    async def _found_asleep(self, version: Version) -> None:
        """What sleeps in an engine is asleep, whoever has put it to sleep and said so or not."""
        state = version.state
        if state in (VersionState.ASLEEP, VersionState.RETIRED):
            return
        if VersionState.ASLEEP not in MOVES[state]:
            reason = "an engine has it asleep"
            version = (
                await self._registry.disown(version, reason)
                if state in LIVE
                else await self._registry.move(version, VersionState.REGISTERED, reason=reason)
            )
        await self._registry.move(version, VersionState.ASLEEP)

    async def _settle(self, version: Version, needs: _Needs) -> None:
        """What lines may give to requests serves; what none does any more drains for a while, and goes."""
        state = version.state
        is_given, is_needed = version.name in needs.given, version.name in needs.needed
        may_go = needs.is_whole and not is_needed and version.name not in needs.others
        is_due = self._now_ms() - version.since_ms >= self._linger_ms
        if version.name in self._moving:
            return
        if (state in (VersionState.REGISTERED, VersionState.ASLEEP) and is_needed) or (
            state is VersionState.FAILED and is_given and is_due
        ):
            self._begin(version, self._load)
        elif state is VersionState.DRAINING and is_needed:
            await self._registry.move(version, VersionState.READY)
        elif state is VersionState.READY and is_given:
            await self._registry.move(version, VersionState.SERVING)
        elif state is VersionState.SERVING and not is_given and (is_needed or may_go):
            await self._registry.move(version, VersionState.DRAINING)
        elif may_go and (state is VersionState.READY or (state is VersionState.DRAINING and is_due)):
            rests = version.name in needs.resting and self._fleet.can_sleep(version)
            self._begin(version, self._put_to_sleep if rests else self._let_go)
        elif may_go and state is VersionState.ASLEEP and version.name not in needs.resting:
            self._begin(version, self._let_go)
        elif state is VersionState.RETIRED and version.name in self._fleet.loaded():
            self._begin(version, self._fleet.unload)

    async def _try(self, what: str, look: Awaitable[None]) -> None:
        """Whatever is wrong with one line or version stops no other."""
        try:
            await look
        except ConflictError as error:
            log.info("%s", error)  # an operator was first; the next look sees what was said
        except StateError:
            raise
        except AiriError as error:
            if self._troubles.get(what) != str(error):
                log.warning("%s stays as it is: %s", what, error)
            self._troubles[what] = str(error)
        except Exception as error:
            if self._troubles.get(what) != repr(error):
                log.exception("%s stays as it is", what)
            self._troubles[what] = repr(error)
        else:
            self._troubles.pop(what, None)

    def _begin(self, version: Version, move: Callable[[Version], Awaitable[None]]) -> None:
        """Loads or lets go beside the ticks, one thing at a time for each version."""

        async def run() -> None:
            try:
                await move(version)
            except AiriError as error:
                log.warning("%s: %s", version.name, error)
            except Exception:
                log.exception("%s: could not be loaded, or let go", version.name)
            finally:
                del self._moving[version.name]

        if version.name not in self._moving:
            self._moving[version.name] = asyncio.create_task(run())

    async def _load(self, version: Version) -> None:
        loading = await self._registry.move(version, VersionState.LOADING)
        try:
            await self._bring(loading)
        except Exception as error:  # whatever it is, the rollout is to be told
            reason = str(error) if isinstance(error, AiriError) else f"{type(error).__name__}: {error}"
            await self._registry.move(loading, VersionState.FAILED, reason=reason)
            if not isinstance(error, AiriError):
                raise
        else:
            await self._registry.move(loading, VersionState.READY)

    async def _bring(self, version: Version) -> None:
        """Loads or wakes a version; where that takes memory that sleeping ones have, these go first."""
        try:
            try:
                await self._fleet.load(version)
            except MemoryBudgetError:
                sleeping = [each for each in self._known() if each.state is VersionState.ASLEEP]
                if not sleeping:
                    raise
                for each in sleeping:
                    log.info("%s goes, as %s needs memory", each.name, version.name)
                    await self._let_go(each)
                await self._fleet.load(version)
        except Exception:
            if version.name in self._fleet.asleep():  # it would be taken for one that rests
                await self._fleet.unload(version)
            raise

    async def _put_to_sleep(self, version: Version) -> None:
        if version.state is VersionState.READY:  # nobody is to count on it meanwhile
            version = await self._registry.move(version, VersionState.DRAINING)
        try:
            await self._fleet.sleep(version)
        except AiriError as error:
            log.warning("%s is let go, as it cannot sleep: %s", version.name, error)
            await self._let_go(version)
        else:
            await self._registry.move(version, VersionState.ASLEEP)

    async def _let_go(self, version: Version) -> None:
        if version.state is VersionState.READY:  # nobody is to count on it meanwhile
            version = await self._registry.move(version, VersionState.DRAINING)
        await self._fleet.unload(version)
        await self._registry.move(version, VersionState.REGISTERED)

    def _known(self) -> list[Version]:
        return [version for version in self._registry.versions() if self._fleet.knows(version)]

    def _needs(self) -> _Needs:
        needs = _Needs(
            given=set(),
            needed={version.name for version in self._registry.versions() if version.is_kept},
            resting=set(),
            others=set(),
            is_whole=not self._lines.unread,
        )
        for line in self._lines.all:
            try:
                self._add_needs(line, needs)
            except LifecycleError:  # told by `_advance`, or by whoever serves it
                needs = needs._replace(is_whole=False)
        for line in self._lines.others:
            for release in line.split.releases:
                with suppress(LifecycleError):
                    needs.others.update(self._names(line.name, release))
        return needs._replace(needed=needs.needed | needs.given)

    def _add_needs(self, line: Line, needs: _Needs) -> None:
        split, rollout = line.split, line.rollout
        needs.given.update(self._names(line.name, split.stable))
        if split.candidate is not None:
            names = needs.given if split.weight > 0 else needs.needed
            names.update(self._names(line.name, split.candidate))
        if rollout is not None and rollout.phase is Phase.COMPLETED:
            # What was stable answers until all of what is stable now can.
            before = self._members(line.name, rollout.stable)
            needs.resting.update(version.name for version in before)
            is_there = all(v.is_warm or v.state is VersionState.DRAINING for v in before)
            if is_there and not Candidate.of(self._members(line.name, line.stable)).is_ready:
                needs.given.update(version.name for version in before)

    def _members(self, line: str, release: str) -> list[Version]:
        return self._releases.members(self._releases.find(line, release))

    def _names(self, line: str, release: str) -> set[str]:
        return {version.name for version in self._members(line, release)}
