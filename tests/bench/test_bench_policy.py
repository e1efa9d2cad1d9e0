"""The calls that the bench of decisions asks about."""

from __future__ import annotations

from airi.policy.decisions import Decider
from airi.policy.schema import cedar_schema
from benches.bench_governance import POLICIES
from benches.bench_policy import MODELS, calls, check


def test_decisions_are_cedars_and_not_all_the_same() -> None:
    check(300)


def test_every_call_is_a_new_one_to_what_remembers_decisions() -> None:
    decider = Decider(POLICIES, cedar_schema(), MODELS)
    asked = calls(5000, 0)
    for call in asked:
        decider.decide(*call)
    assert len(decider._remembered) == len(asked)
