"""What a rollout is: the steps from one release of a line to the next, and how far it has come.

All of it is one document per line, so that every change is whole: which release is stable, which one is tried, how the
traffic is split. Whoever reads it knows what to do, whenever it was written and by whom.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from airi.lifecycle.draw import Split
from airi.lifecycle.gates import Gate

__all__ = [
    "Analysis",
    "Event",
    "Line",
    "OnFailure",
    "Pause",
    "Phase",
    "Rollout",
    "SetWeight",
    "Shadow",
    "Step",
]

_MOST_EVENTS = 64


class Shadow(msgspec.Struct, frozen=True, tag="shadow", kw_only=True):
    """The candidate reads what stable has answered, and says how likely it finds that; nobody gets its answers."""

    percent: float
    """Of stable's answers that are scored, in (0, 100]."""
    duration_s: float
    """At least; it goes on while the gates on tokens have too little to tell."""


class SetWeight(msgspec.Struct, frozen=True, tag="set_weight", kw_only=True):
    """From now on the candidate gets so many percent of new requests and sessions."""

    weight: float


class Pause(msgspec.Struct, frozen=True, tag="pause", kw_only=True):
    """Waits so long; without a duration, until somebody promotes."""

    duration_s: float | None = None


class Analysis(msgspec.Struct, frozen=True, tag="analysis", kw_only=True):
    """Goes on once these gates pass; what they cannot tell yet is waited for."""

    gates: tuple[str, ...]


Step = Shadow | SetWeight | Pause | Analysis


class OnFailure(StrEnum):
    """What a gate that fails leads to."""

    ROLLBACK = "rollback"
    """All traffic goes back to stable."""
    HOLD = "hold"
    """Nothing moves until somebody promotes or aborts."""
    NOTIFY = "notify"
    """It is noted, and the rollout goes on."""


class Phase(StrEnum):
    """How a rollout stands."""

    PREPARING = "preparing"
    """The candidate's members are loaded and warmed; stable has all traffic."""
    RUNNING = "running"
    HOLDING = "holding"
    """A gate has failed, and somebody has to say what now."""
    COMPLETED = "completed"
    """The candidate is the stable release."""
    ABORTED = "aborted"
    """Stable has all traffic again: a gate failed, or somebody said so."""
    FAILED = "failed"
    """The candidate could not be loaded; stable never lost any traffic."""

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self in (Phase.COMPLETED, Phase.ABORTED, Phase.FAILED)


class Event(msgspec.Struct, frozen=True):
    """Something that happened, for people."""

    at_ms: int
    what: str


class Rollout(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A rollout and how far it has come. Never holds a prompt or an answer."""

    id: str
    """Unique; also what makes its draws its own."""
    stable: str
    candidate: str
    steps: tuple[Step, ...]
    gates: dict[str, tuple[Gate, ...]] = {}
    """By name, as `analysis` names them."""
    on_failure: OnFailure = OnFailure.ROLLBACK
    phase: Phase = Phase.PREPARING
    step: int = 0
    """Index of the step that runs; the number of steps when all are done."""
    since_ms: int = 0
    """When this step began, by the clock of whoever led then."""
    weight: float = 0.0
    failed: tuple[str, ...] = ()
    """Gates that it is held by."""
    waived: dict[str, int] = {}
    """Gates that have failed and that somebody promoted it in spite of, with when: they say nothing any more."""
    waits_for: str = ""
    """Why it does not go on, for people; empty where nothing is missing but time."""
    events: tuple[Event, ...] = ()
    """The latest ones, oldest first."""

    @property
    def current(self) -> Step | None:
        """The step that runs."""
        return self.steps[self.step] if self.phase is Phase.RUNNING and self.step < len(self.steps) else None

    @property
    def stage(self) -> int:
        """How many weights have been set."""
        return sum(isinstance(step, SetWeight) for step in self.steps[: self.step])

    @property
    def shadow_percent(self) -> float:
        """How many of stable's answers the candidate is to score now."""
        return self.current.percent if isinstance(self.current, Shadow) else 0.0

    def noted(self, at_ms: int, what: str) -> tuple[Event, ...]:
        """Its events with one more."""
        return (*self.events, Event(at_ms, what))[-_MOST_EVENTS:]


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What requests of one name are served with: the document that all gateways follow.

    *Invariant*: the candidate has traffic only while a rollout is under way.
    """

    name: str
    stable: str
    rollout: Rollout | None = None
    """The one under way, or the last one."""
    revision: int = 0
    """Of this document; 0 before it is kept."""

    @property
    def split(self) -> Split:
        """How new requests and sessions are to be split now."""
        rollout = self.rollout
        if rollout is None or rollout.phase.ended:
            return Split(stable=self.stable)
        return Split(stable=self.stable, candidate=rollout.candidate, weight=rollout.weight, salt=rollout.id)
