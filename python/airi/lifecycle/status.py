"""How lines and versions stand, for people and for JSON. Moments are texts such as 2026-01-31T12:00:00Z."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from airi._units import moment
from airi.lifecycle.registry import Version
from airi.lifecycle.releases import Release
from airi.lifecycle.rollouts import Analysis, Line, Pause, SetWeight, Shadow, Step

__all__ = ["LineStatus", "RolloutEvent", "VersionStatus", "line_status", "version_status"]


class RolloutEvent(msgspec.Struct, kw_only=True):
    """Something that happened in a rollout."""

    at: str
    what: str


class LineStatus(msgspec.Struct, kw_only=True):
    """What requests of one name are served with, and its rollout: the one under way, or the last one."""

    line: str
    stable: str
    releases: dict[str, dict[str, str]]
    """By id, the version of each model."""
    phase: Literal["preparing", "running", "holding", "completed", "aborted", "failed"] | None
    """Null: none was ever started."""
    candidate: str | None
    weight: float
    """Percent of requests that the candidate gets."""
    step: int | None
    """The step that runs, from 1 on; null: none does."""
    steps: list[str]
    waits_for: str
    """Why it does not go on; empty where nothing is missing but time."""
    events: list[RolloutEvent]


class VersionStatus(msgspec.Struct, kw_only=True):
    """A version of a model."""

    model: str
    version: str
    state: Literal["registered", "loading", "ready", "serving", "draining", "asleep", "failed", "retired"]
    reason: str
    """Why it failed, or was let go."""
    since: str
    """When it came to where it stands."""
    source: str
    digest: str
    is_kept: bool
    """Whether an operator wants it loaded, also while no line needs it."""


def line_status(line: Line, releases: Iterable[Release]) -> LineStatus:
    """How a line stands; `releases` are its own."""
    rollout = line.rollout
    ended = rollout is None or rollout.phase.ended
    return LineStatus(
        line=line.name,
        stable=line.stable,
        releases={release.id: release.members for release in releases},
        phase=None if rollout is None else rollout.phase.value,
        candidate=None if rollout is None else rollout.candidate,
        weight=line.split.weight,
        step=None if rollout is None or ended else min(rollout.step + 1, len(rollout.steps)),
        steps=[] if rollout is None else [_said(step) for step in rollout.steps],
        waits_for="" if rollout is None else rollout.waits_for,
        events=[]
        if rollout is None
        else [RolloutEvent(at=moment(event.at_ms / 1000), what=event.what) for event in rollout.events],
    )


def version_status(version: Version) -> VersionStatus:
    """How a version stands."""
    return VersionStatus(
        model=version.model,
        version=version.id,
        state=version.state.value,
        reason=version.reason,
        since=moment(version.since_ms / 1000),
        source=version.source,
        digest=version.digest,
        is_kept=version.is_kept,
    )


def _said(step: Step) -> str:
    match step:
        case Shadow():
            return f"shadow {step.percent:g} % for {step.duration_s:g} s"
        case SetWeight():
            return f"set_weight {step.weight:g}"
        case Pause():
            return "pause" if step.duration_s is None else f"pause {step.duration_s:g} s"
        case Analysis():
            return f"analysis {', '.join(step.gates)}"
