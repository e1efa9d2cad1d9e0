"""What comes next in a rollout: a pure function of how it stands, the time, and what gates and operators say.

Whoever leads calls `advance` again and again; each call does at most what one look at the world allows, and the result
is kept before anything acts on it. So a leader may be killed at any moment, and the next one goes on from the document.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from msgspec.structs import replace

from airi.errors import LifecycleError
from airi.lifecycle.gates import Finding, Outcome
from airi.lifecycle.registry import Version
from airi.lifecycle.rollouts import Analysis, Line, OnFailure, Pause, Phase, Rollout, SetWeight, Shadow, Step
from airi.lifecycle.states import VersionState

__all__ = ["Candidate", "Command", "advance", "command", "start", "waiting"]


class Candidate(NamedTuple):
    """How the members of the candidate's release stand."""

    is_ready: bool
    """All of them are warm."""
    failure: str = ""
    """Why one of them can not be loaded, or died; empty where none did."""

    @classmethod
    def of(cls, members: Iterable[Version], *, moving: Container[str] = ()) -> Candidate:
        """As the records of its members say; `moving`: names of those that are being loaded or let go just now."""
        versions = list(members)
        failed = [f"{v.name}: {v.reason}" for v in versions if v.state is VersionState.FAILED]
        return cls(all(v.is_warm and v.name not in moving for v in versions), "; ".join(failed))


class Command(StrEnum):
    """What an operator may say of a rollout."""

    PROMOTE = "promote"
    """Goes on behind what it waits for: a pause, a gate that cannot tell, a gate that has failed."""
    PROMOTE_FULL = "promote_full"
    """The candidate is stable at once."""
    ABORT = "abort"
    """Stable has all traffic at once."""


def start(line: Line, rollout: Rollout, now_ms: int, *, who: str = "") -> Line:
    """The line with a new rollout. Raises LifecycleError where one is under way, or stable is another release."""
    running = line.rollout
    if running is not None and not running.phase.ended:
        raise LifecycleError(
            f"{line.name} is in a rollout to {running.candidate} ({running.phase}); abort it first",
            field="rollout",
        )
    if rollout.stable != line.stable:
        raise LifecycleError(
            f"stable is {rollout.stable}; {line.name} is served with {line.stable}", field="stable"
        )
    if rollout.candidate == rollout.stable:
        raise LifecycleError(f"candidate is {rollout.candidate}, which is stable already", field="candidate")
    begun = replace(rollout, phase=Phase.PREPARING, step=0, since_ms=now_ms, weight=0.0, events=())
    by = f" by {who}" if who else ""
    what = f"started{by}: {rollout.stable} -> {rollout.candidate}"
    return replace(line, rollout=_noted(begun, now_ms, what))


def command(line: Line, said: Command, now_ms: int, *, who: str, candidate: Candidate) -> Line:
    """The line after what an operator has said.

    Raises LifecycleError where there is nothing to say it of, and for a promotion to what is not loaded.
    """
    rollout = line.rollout
    if rollout is None or rollout.phase.ended:
        how = "none was ever started" if rollout is None else f"the last one is {rollout.phase}"
        raise LifecycleError(f"{line.name} is in no rollout: {how}", field="rollout")
    if said is Command.ABORT:
        return replace(line, rollout=_ended(rollout, Phase.ABORTED, now_ms, f"aborted by {who}"))
    if rollout.phase is Phase.PREPARING or not candidate.is_ready:
        raise LifecycleError(f"{rollout.candidate} is not loaded; nothing can be promoted", field="rollout")
    if said is Command.PROMOTE_FULL:
        return _completed(line, rollout, now_ms, f"promoted in full by {who}")
    return replace(line, rollout=_promoted(rollout, now_ms, who))


def advance(line: Line, now_ms: int, candidate: Candidate, findings: Mapping[str, Finding]) -> Line:
    """The line as it is to be now; the same one where nothing is to be done.

    `findings`: by name, what each gate says, of all that was seen since the rollout began. One that has failed counts
    at any time; the others where a step asks for them.
    """
    rollout = line.rollout
    if rollout is None or rollout.phase.ended:
        return line
    if candidate.failure:
        phase = Phase.FAILED if rollout.phase is Phase.PREPARING else Phase.ABORTED
        return replace(line, rollout=_ended(rollout, phase, now_ms, candidate.failure))
    if rollout.phase is Phase.PREPARING:
        if not candidate.is_ready:
            return waiting(line, rollout, f"{rollout.candidate} is being loaded")
        ready = replace(rollout, phase=Phase.RUNNING, since_ms=now_ms, waits_for="")
        return replace(line, rollout=_noted(ready, now_ms, f"{rollout.candidate} is ready"))
    if rollout.phase is Phase.HOLDING:
        return line
    findings = {name: found for name, found in findings.items() if name not in rollout.waived}
    failed = {name: finding.why for name, finding in findings.items() if finding.outcome is Outcome.FAIL}
    if failed and rollout.on_failure is OnFailure.NOTIFY:
        line = _told(line, rollout, f"failed: {', '.join(failed)}", now_ms)
        rollout = line.rollout or rollout
    elif failed:
        return replace(line, rollout=_failed(rollout, failed, now_ms))
    if not candidate.is_ready:
        # Its engine has died: stable answers alone, and nothing counts as done.
        what = f"{rollout.candidate}, which is not loaded any more; it is being loaded again"
        return waiting(line, rollout, what)
    if rollout.step == len(rollout.steps):
        return _completed(line, rollout, now_ms, "all steps are done")
    return _step(line, rollout, rollout.steps[rollout.step], now_ms, findings)


def _step(line: Line, rollout: Rollout, step: Step, now_ms: int, findings: Mapping[str, Finding]) -> Line:
    elapsed_s = (now_ms - rollout.since_ms) / 1000
    if isinstance(step, SetWeight):
        moved = replace(rollout, weight=step.weight)
        return replace(line, rollout=_next_step(moved, now_ms, f"weight {step.weight:g}"))
    if isinstance(step, Pause):
        if step.duration_s is None:
            return waiting(line, rollout, "somebody to promote")
        is_over = elapsed_s >= step.duration_s
        return (
            replace(line, rollout=_next_step(rollout, now_ms, "paused"))
            if is_over
            else waiting(line, rollout)
        )
    if isinstance(step, Shadow):
        if elapsed_s < step.duration_s:
            return waiting(line, rollout)
        asked: tuple[str, ...] = tuple(
            n for n, g in rollout.gates.items() if any(each.is_scored for each in g)
        )
    else:
        asked = step.gates
    # Nothing said is too little said: what is missing holds, and never passes.
    open_gates = [
        f"{name}: {findings[name].why if name in findings else 'nothing is known yet'}"
        for name in asked
        if name not in rollout.waived and (name not in findings or findings[name].outcome is Outcome.HOLD)
    ]
    if open_gates:
        return waiting(line, rollout, "; ".join(open_gates))
    done = "analysed" if isinstance(step, Analysis) else "scored"
    return replace(line, rollout=_next_step(rollout, now_ms, f"{done}: {', '.join(asked) or 'no gates'}"))


def _failed(rollout: Rollout, failed: Mapping[str, str], now_ms: int) -> Rollout:
    why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    if rollout.on_failure is OnFailure.ROLLBACK:
        return _ended(rollout, Phase.ABORTED, now_ms, f"rolled back: {why}")
    held = replace(rollout, phase=Phase.HOLDING, failed=tuple(failed), waits_for=f"a decision: {why}")
    return _noted(held, now_ms, f"holding: {why}")


def _promoted(rollout: Rollout, now_ms: int, who: str) -> Rollout:
    """Behind what it waits for, with every step done that does something; gates that it was held by say no more."""
    what = f"promoted by {who}"
    if rollout.failed:
        what += f", whatever {', '.join(rollout.failed)} say{'' if rollout.failed[1:] else 's'}"
    waived = {**rollout.waived, **dict.fromkeys(rollout.failed, now_ms)}
    running = replace(rollout, phase=Phase.RUNNING, failed=(), waived=waived, waits_for="")
    if isinstance(running.current, SetWeight):
        return _noted(running, now_ms, what)
    return _next_step(running, now_ms, what)


def _told(line: Line, rollout: Rollout, what: str, now_ms: int) -> Line:
    """Notes something once, however often it is said within a step."""
    if any(event.what == what for event in rollout.events if event.at_ms >= rollout.since_ms):
        return line
    return replace(line, rollout=_noted(rollout, now_ms, what))


def _next_step(rollout: Rollout, now_ms: int, what: str) -> Rollout:
    step = min(rollout.step + 1, len(rollout.steps))
    return _noted(replace(rollout, step=step, since_ms=now_ms, waits_for=""), now_ms, what)


def _completed(line: Line, rollout: Rollout, now_ms: int, what: str) -> Line:
    """The candidate is stable, in the same breath in which the rollout ends."""
    done = replace(rollout, phase=Phase.COMPLETED, step=len(rollout.steps), weight=100.0, waits_for="")
    return replace(line, stable=rollout.candidate, rollout=_noted(done, now_ms, what))


def _ended(rollout: Rollout, phase: Phase, now_ms: int, why: str) -> Rollout:
    return _noted(replace(rollout, phase=phase, weight=0.0, waits_for=""), now_ms, why)


def waiting(line: Line, rollout: Rollout, what: str = "") -> Line:
    """The line with a rollout that waits for something, or for nothing but time; the same one where it did before."""
    if rollout.waits_for == what:
        return line
    return replace(line, rollout=replace(rollout, waits_for=what))


def _noted(rollout: Rollout, now_ms: int, what: str) -> Rollout:
    return replace(rollout, events=rollout.noted(now_ms, what))
