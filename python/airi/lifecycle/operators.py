"""What operators say of rollouts, on the documents of a state: whoever leads goes on from there."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Container
from typing import NamedTuple

from airi.errors import ConflictError, LifecycleError, VersionError
from airi.lifecycle.gates import Gate
from airi.lifecycle.lines import Lines
from airi.lifecycle.machine import Candidate, Command, command, start
from airi.lifecycle.registry import Registry, Version
from airi.lifecycle.releases import ReleaseBook
from airi.lifecycle.rollouts import Line, OnFailure, Rollout, Step
from airi.lifecycle.states import VersionState
from airi.state import Store

__all__ = ["Operator", "Plan"]

_TRIES = 8


class Plan(NamedTuple):
    """How a rollout is to go."""

    candidate: str | None
    steps: tuple[Step, ...]
    gates: dict[str, tuple[Gate, ...]]
    on_failure: OnFailure


class Operator:
    """Somebody who starts, promotes and aborts rollouts.

    *Thread safety*: none; one event loop.
    *Invariant*: what is said of a rollout is done to it as it stood when it was said, or not at all.
    """

    def __init__(
        self, store: Store, now_ms: Callable[[], int], *, only: Container[str] | None = None
    ) -> None:
        """`only`: as `Lines`."""
        self.registry = Registry(store, now_ms)
        self.releases = ReleaseBook(store, self.registry)
        self.lines = Lines(store, only=only)
        self._now_ms = now_ms

    async def refresh(self) -> None:
        """Reads what others have changed. Raises StateError."""
        for documents in (self.registry, self.releases, self.lines):
            await documents.refresh()

    async def start(self, line: str, plan: Plan, *, candidate: str | None, who: str) -> Line:
        """Begins a rollout to a release: `candidate`, else the plan's, else the only other one.

        Its members that have failed before are tried again. Raises LifecycleError for what cannot be begun, and
        StateError.
        """
        await self.refresh()
        found = self.lines.find(line)
        tried = self.releases.find(line, candidate or plan.candidate or self._other(found))
        rollout = Rollout(
            id=f"{line}-{secrets.token_hex(6)}",
            stable=found.stable,
            candidate=tried.id,
            steps=plan.steps,
            gates=plan.gates,
            on_failure=plan.on_failure,
        )
        begun = start(found, rollout, self._now_ms(), who=who)
        for version in self.releases.members(tried):
            if version.state is VersionState.RETIRED:
                raise LifecycleError(
                    f"candidate is {tried.id}, of which {version.name} is retired; it is never loaded again",
                    field="candidate",
                )
        for version in self.releases.members(tried):
            await self._forgive(version)
        return await self.lines.put(begun)

    async def say(self, line: str, said: Command, *, who: str) -> Line:
        """Promotes or aborts. Raises LifecycleError where there is nothing to say it of, ConflictError where somebody
        else was first, and StateError."""
        await self.refresh()
        seen = self.lines.find(line)
        for _ in range(_TRIES):
            now = self.lines.find(line)
            if said is not Command.ABORT and _place(now) != _place(seen):
                break
            try:
                return await self.lines.put(self._after(now, said, who))
            except ConflictError:  # most often whoever leads has noted what it waits for
                continue
        raise ConflictError(f"{line} was changed by somebody else meanwhile; look again", field="line")

    async def retire(self, model: str, version: str) -> Version:
        """Has a version never loaded again. Its record stays.

        Raises VersionError for one that is loaded or that a line needs, and for one that there is not, ConflictError
        where somebody else was first, and StateError.
        """
        await self.refresh()
        found = self.registry.find(model, version)
        for line in (*self.lines.all, *self.lines.others):
            for release in line.split.releases:
                if found in self.releases.members(self.releases.find(line.name, release)):
                    raise VersionError(
                        f"{found.name} is in {release}, which {line.name} is served with; it cannot be retired",
                        field="state",
                    )
        return await self.registry.move(found, VersionState.RETIRED)

    def _after(self, line: Line, said: Command, who: str) -> Line:
        candidate = Candidate(is_ready=False)
        if line.rollout is not None and said is not Command.ABORT:
            tried = self.releases.find(line.name, line.rollout.candidate)
            candidate = Candidate.of(self.releases.members(tried))
        return command(line, said, self._now_ms(), who=who, candidate=candidate)

    def _other(self, line: Line) -> str:
        others = [release.id for release in self.releases.of(line.name) if release.id != line.stable]
        if len(others) == 1:
            return others[0]
        known = ", ".join(others) or "none, it has no other"
        raise LifecycleError(
            f"candidate is not said; releases of {line.name} beside {line.stable}, which is stable: {known}",
            field="candidate",
        )

    async def _forgive(self, version: Version) -> None:
        if version.state is VersionState.FAILED:
            await self.registry.move(version, VersionState.REGISTERED, reason="to be tried again")


def _place(line: Line) -> tuple[object, ...]:
    rollout = line.rollout
    return (line.stable,) if rollout is None else (line.stable, rollout.id, rollout.phase, rollout.step)
