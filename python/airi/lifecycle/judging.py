"""What the gates of a rollout say now, of all that was seen and of what was seen at the present weight."""

from __future__ import annotations

from airi.lifecycle.gates import Change, Finding, Outcome, judge_all
from airi.lifecycle.observed import Seen
from airi.lifecycle.rollouts import Rollout

__all__ = ["findings_of"]


def findings_of(
    rollout: Rollout, whole: tuple[Seen, Seen], now: tuple[Seen, Seen], change: Change | None
) -> dict[str, Finding]:
    """By name, what each gate says.

    `whole` and `now`: what was seen of stable and candidate since the rollout began, and since its last weight was set.
    A gate fails by either. It passes by what was seen at this weight: what went well with 5 % of the traffic says
    little of 50 %. What is scored is no matter of weights, and counts as a whole.
    """
    if rollout.weight >= 100:  # stable has no traffic any more: it is what it was
        now = whole[0], now[1]
    gates = rollout.gates.items()
    all_time = judge_all(rollout.gates, *whole, change)
    scored = judge_all({name: [g for g in each if g.is_scored] for name, each in gates}, *whole, change)
    present = judge_all({name: [g for g in each if not g.is_scored] for name, each in gates}, *now, change)
    found = {}
    for name, finding in all_time.items():
        if finding.outcome is not Outcome.FAIL:
            finding = next((f for f in (scored[name], present[name]) if f.outcome is Outcome.FAIL), finding)
        if finding.outcome is not Outcome.FAIL:
            finding = next((f for f in (scored[name], present[name]) if f.outcome is Outcome.HOLD), finding)
            if finding is present[name] and rollout.stage:
                finding = Finding(finding.outcome, f"{finding.why} at weight {rollout.weight:g}")
        found[name] = finding
    return found
