"""Rollouts as a pure function: whatever is said and seen, in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.errors import LifecycleError
from airi.lifecycle.gates import Bound, Finding, Gate, Metric, Outcome
from airi.lifecycle.machine import Candidate, Command, advance, command, start
from airi.lifecycle.rollouts import Analysis, Line, OnFailure, Pause, Phase, Rollout, SetWeight, Shadow

GATES: dict[str, tuple[Gate, ...]] = {
    "tokens": (Gate(metric=Metric.NLL_DELTA, bound=Bound.MAX, value=0.1),),
    "latency": (Gate(metric=Metric.TTFT, bound=Bound.REGRESSION, value=0.1),),
}
READY, LOADING = Candidate(is_ready=True), Candidate(is_ready=False)
PASS, FAIL, HOLD = (Finding(outcome, f"says {outcome}") for outcome in Outcome)
STEPS = (
    Shadow(percent=10, duration_s=5),
    SetWeight(weight=5),
    Pause(duration_s=10),
    Analysis(gates=("latency",)),
)


def line_with(*steps: Any, on_failure: OnFailure = OnFailure.ROLLBACK) -> Line:
    rollout = Rollout(
        id="r", stable="g1", candidate="g2", steps=steps or STEPS, gates=GATES, on_failure=on_failure
    )
    return start(Line(name="general", stable="g1"), rollout, 0)


def rollout_of(line: Line) -> Rollout:
    assert line.rollout is not None
    return line.rollout


def run(line: Line, now_ms: int, **findings: Finding) -> Line:
    """Advances until nothing changes."""
    while (after := advance(line, now_ms, READY, findings)) is not line:
        line = after
    return line


def test_a_rollout_goes_through_its_steps_and_ends_with_the_candidate_stable() -> None:
    line = line_with(*STEPS, SetWeight(weight=100))
    assert advance(line, 1, LOADING, {}).split.weight == 0
    line = run(line, 1_000)
    assert rollout_of(line).shadow_percent == 10
    assert run(line, 5_999, tokens=PASS) is line
    line = run(line, 6_000, tokens=PASS)
    assert (line.split.weight, rollout_of(line).shadow_percent) == (5, 0)
    line = run(line, 16_000, tokens=PASS)
    assert rollout_of(line).waits_for == "latency: nothing is known yet"
    line = run(line, 17_000, latency=PASS)
    assert (line.stable, line.split.releases, rollout_of(line).phase) == ("g2", ("g2",), Phase.COMPLETED)


@pytest.mark.parametrize("finding", [None, HOLD])
def test_what_is_missing_holds_and_never_passes(finding: Finding | None) -> None:
    line = run(line_with(), 0)
    found = {} if finding is None else {"tokens": finding}
    for now_ms in range(0, 10**9, 10**7):
        line = run(line, now_ms, **found)
        assert (rollout_of(line).step, line.split.weight) == (0, 0)
    assert rollout_of(line).waits_for.startswith("tokens: ")


@pytest.mark.parametrize(
    ("on_failure", "phase", "weight"),
    [
        (OnFailure.ROLLBACK, Phase.ABORTED, 0),
        (OnFailure.HOLD, Phase.HOLDING, 5),
        (OnFailure.NOTIFY, Phase.RUNNING, 5),
    ],
)
def test_a_gate_that_fails_counts_at_any_step(on_failure: OnFailure, phase: Phase, weight: float) -> None:
    line = run(line_with(SetWeight(weight=5), Pause(), on_failure=on_failure), 0)
    line = run(line, 1, latency=FAIL)
    assert (rollout_of(line).phase, line.split.weight) == (phase, weight)
    what = [event.what for event in rollout_of(line).events]
    assert ("failed: latency" if on_failure is OnFailure.NOTIFY else "latency: says fail") in what[-1]
    assert run(line, 2, latency=FAIL) is line


def test_a_candidate_that_cannot_be_loaded_never_had_traffic() -> None:
    line = advance(line_with(), 5, Candidate(is_ready=False, failure="no memory"), {})
    assert (rollout_of(line).phase, line.split.releases) == (Phase.FAILED, ("g1",))
    line = advance(
        run(line_with(SetWeight(weight=5), Pause()), 0), 5, Candidate(is_ready=False, failure="died"), {}
    )
    assert (rollout_of(line).phase, line.split.releases) == (Phase.ABORTED, ("g1",))


def test_what_operators_say() -> None:
    line = run(line_with(SetWeight(weight=5), Pause(), SetWeight(weight=50), Pause()), 0)
    promoted = run(command(line, Command.PROMOTE, 1, who="ops", candidate=READY), 1)
    assert promoted.split.weight == 50
    assert command(line, Command.PROMOTE_FULL, 1, who="ops", candidate=READY).stable == "g2"
    aborted = command(line, Command.ABORT, 1, who="ops", candidate=READY)
    assert (aborted.stable, aborted.split.releases) == ("g1", ("g1",))
    with pytest.raises(LifecycleError, match="in no rollout: the last one is aborted"):
        command(aborted, Command.PROMOTE, 2, who="ops", candidate=READY)
    with pytest.raises(LifecycleError, match="none was ever started"):
        command(Line(name="general", stable="g1"), Command.ABORT, 2, who="ops", candidate=READY)
    with pytest.raises(LifecycleError, match="g2 is not loaded; nothing"):
        command(line_with(), Command.PROMOTE_FULL, 2, who="ops", candidate=READY)


@pytest.mark.parametrize("held_at", range(4))
def test_who_promotes_what_a_gate_holds_waives_that_gate(held_at: int) -> None:
    weights = (SetWeight(weight=5), Pause(duration_s=1), SetWeight(weight=50), Analysis(gates=("latency",)))
    line = line_with(*weights, SetWeight(weight=100), Pause(), on_failure=OnFailure.HOLD)
    line = advance(line, 0, READY, {})
    for step in range(held_at):
        assert rollout_of(line).step == step
        line = advance(line, 2_000 * (step + 1), READY, {"latency": HOLD})
    line = run(line, 10_000, latency=FAIL)
    assert (rollout_of(line).phase, rollout_of(line).step) == (Phase.HOLDING, held_at)
    line = command(line, Command.PROMOTE, 10_001, who="ops", candidate=READY)
    assert rollout_of(line).waived == {"latency": 10_001}
    assert rollout_of(line).events[-1].what == "promoted by ops, whatever latency says"
    seen = [line.split.weight]
    for now_ms in range(11_000, 20_000, 1_000):
        line = advance(line, now_ms, READY, {"latency": FAIL})
        seen.append(line.split.weight)
    # No step that does something was left out, and the gate says no more.
    assert {5, 50, 100} & set(seen) == ({5, 50, 100} if held_at < 3 else {50, 100})
    assert (seen[-1], rollout_of(line).waits_for) == (100, "somebody to promote")
    # Another one counts still.
    assert rollout_of(advance(line, 30_000, READY, {"tokens": FAIL, "latency": FAIL})).failed == ("tokens",)


def test_what_cannot_be_started() -> None:
    rollout = rollout_of(line_with())
    with pytest.raises(LifecycleError, match="is in a rollout to g2"):
        start(line_with(), rollout, 0)
    with pytest.raises(LifecycleError, match="general is served with g3"):
        start(Line(name="general", stable="g3"), rollout, 0)
    with pytest.raises(LifecycleError, match="g2, which is stable already"):
        start(Line(name="general", stable="g2"), Rollout(id="r", stable="g2", candidate="g2", steps=()), 0)


STEP = st.one_of(
    st.builds(Shadow, percent=st.floats(1, 100), duration_s=st.integers(0, 20)),
    st.builds(SetWeight, weight=st.integers(0, 100)),
    st.builds(Pause, duration_s=st.none() | st.integers(0, 20)),
    st.builds(Analysis, gates=st.sampled_from([("tokens",), ("latency",), ("tokens", "latency")])),
)
HAPPENS = st.one_of(
    st.sampled_from(Command),
    st.tuples(
        st.integers(0, 30_000),
        st.sampled_from([READY, LOADING, Candidate(is_ready=False, failure="died")]),
        st.dictionaries(st.sampled_from(sorted(GATES)), st.sampled_from([PASS, HOLD, FAIL])),
    ),
)


@settings(max_examples=300)
@given(st.lists(STEP, max_size=6), st.sampled_from(OnFailure), st.lists(HAPPENS, max_size=25))
def test_whatever_happens_stable_serves_until_the_candidate_has_earned_it(
    steps: list[Any], on_failure: OnFailure, happens: list[Any]
) -> None:
    line, now = line_with(*steps, on_failure=on_failure), 0
    was_ready = said_full = False
    for what in happens:
        before = line
        if isinstance(what, Command):
            try:
                line = command(line, what, now, who="ops", candidate=READY)
            except LifecycleError:
                continue
            said_full |= what is Command.PROMOTE_FULL
        else:
            elapsed, candidate, findings = what
            now += elapsed
            was_ready |= candidate.is_ready and not candidate.failure
            line = advance(line, now, candidate, findings)
            failed = any(f.outcome is Outcome.FAIL for f in findings.values())
            running = rollout_of(before).phase is Phase.RUNNING
            if running and (candidate.failure or (failed and on_failure is OnFailure.ROLLBACK)):
                assert (rollout_of(line).phase, line.split.releases) == (Phase.ABORTED, ("g1",))
        rollout = rollout_of(line)
        # Traffic only for what was warm, weights only from steps, and never a candidate after the end.
        assert was_ready or line.split.weight == 0
        assert rollout.weight in {0, 100, *(s.weight for s in rollout.steps if isinstance(s, SetWeight))}
        assert (line.split.candidate is None) is rollout.phase.ended
        assert (line.stable == "g2") is (rollout.phase is Phase.COMPLETED)
        assert line is before or not rollout_of(before).phase.ended
        if rollout.phase is Phase.COMPLETED and not said_full:
            assert rollout.step == len(steps)
