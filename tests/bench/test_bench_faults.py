"""How the bench of faults has gates judge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from airi.lifecycle.observed import Seen
from airi.lifecycle.rollouts import Rollout
from benches.bench_faults import ALL, CANDIDATE, STABLE, Course


def course() -> Course:
    model: Any = SimpleNamespace(name="m")
    return Course(model, model, ALL, "seed")


def add(seen: Seen, answers: int) -> None:
    seen.requests += answers
    seen.finished += answers
    for _ in range(answers):
        seen.ttft_ms.add(10.0)
        seen.itl_ms.add(1.0)
        seen.nll_delta.add(0.0, 10)
        seen.agreement.add(10.0, 10)


async def look(course: Course, second: int) -> Rollout:
    await course._observing.flush()
    await course._look(second * 1000)
    return course._rollout


async def test_what_was_seen_at_one_weight_says_nothing_of_the_next_one() -> None:
    """As where rollouts are judged in earnest."""
    faults = course()
    for release in (STABLE, CANDIDATE):
        add(faults._observing.of(faults._rollout, release), 200)
    second = 0
    while faults._rollout.weight < 50:
        second += 1
        assert second < 20
        await look(faults, second)
    assert (await look(faults, second + 1)).weight == 50
    assert "0 samples" in (await look(faults, second + 2)).waits_for
    for release in (STABLE, CANDIDATE):
        add(faults._observing.of(faults._rollout, release), 20)
    assert (await look(faults, second + 3)).events[-1].what == "analysed: latency"
