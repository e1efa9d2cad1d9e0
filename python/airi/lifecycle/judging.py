"""What the gates of a rollout say now, of all that was seen and of what was seen at the present weight."""

from __future__ import annotations

from collections.abc import Callable

from airi.lifecycle.gates import Change, Finding, Gate, Outcome, judge_all
from airi.lifecycle.observed import Seen
from airi.lifecycle.rollouts import Rollout

__all__ = ["findings_of"]

_NOTHING = Finding(Outcome.PASS, "it asks for nothing")


def findings_of(
    rollout: Rollout, whole: tuple[Seen, Seen], now: tuple[Seen, Seen], change: Change | None
) -> dict[str, Finding]:
    """By name, what each gate says.

    `whole` and `now`: what was seen of stable and candidate since the rollout began, and since its last weight was set.
    A gate fails by either. It passes by what was seen at this weight: what went well with 5 % of the traffic says
    little of 50 %. What is scored is no matter of weights, and counts as a whole. Of times against stable's those alone
    count that were seen since the weight was set: of most others stable's are older, from when there was less to do.
    """
    if rollout.weight >= 100:  # stable has no traffic any more: it is what it was
        now = whole[0], now[1]

    def said(about: Callable[[Gate], bool], seen: tuple[Seen, Seen]) -> dict[str, Finding]:
        chosen = {name: [gate for gate in each if about(gate)] for name, each in rollout.gates.items()}
        return judge_all({name: each for name, each in chosen.items() if each}, *seen, change)

    scored = said(lambda gate: gate.is_scored, whole)
    present = said(lambda gate: not gate.is_scored, now)
    so_far = said(lambda gate: not gate.is_scored and not gate.is_relative_time, whole)
    found = {}
    for name in rollout.gates:
        each = [of[name] for of in (so_far, scored, present) if name in of]
        fails = [finding for finding in each if finding.outcome is Outcome.FAIL]
        holds = [of[name] for of in (scored, present) if name in of and of[name].outcome is Outcome.HOLD]
        finding = next(iter((*fails, *holds, *reversed(each))), _NOTHING)
        if finding is present.get(name) and finding.outcome is not Outcome.PASS and rollout.stage:
            finding = Finding(finding.outcome, f"{finding.why} at weight {rollout.weight:g}")
        found[name] = finding
    return found
