"""Which prompts an engine serves first, and which wait for what another computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airi.engine import EngineOptions, ModelOptions
from airi.errors import ConfigError
from airi.sampling_params import SamplingParams
from tests.engine.engine_helpers import make_engine, run

PROMPT = [10 + i for i in range(100)]  # six blocks of 16, and four tokens
TWO_TOKENS = SamplingParams(max_tokens=2, temperature=0.0)


@pytest.mark.parametrize("ahead", [False, True])
def test_choices_submitted_together_prefill_their_prompt_once(tiny_llama: Path, ahead: bool) -> None:  # noqa: FBT001
    engine = make_engine(tiny_llama, async_scheduling=ahead)
    for choice in range(4):
        engine.add_request(choice, 0, PROMPT, TWO_TOKENS)
    outputs = run(engine)
    assert [outputs[choice].num_cached_tokens for choice in range(4)] == [0, 96, 96, 96]
    assert len({tuple(outputs[choice].tokens) for choice in range(4)}) == 1


def test_without_dedupe_choices_compute_their_prompt_side_by_side(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, dedupe_steps=0)
    for choice in range(4):
        engine.add_request(choice, 0, PROMPT, TWO_TOKENS)
    outputs = run(engine)
    assert [outputs[choice].num_cached_tokens for choice in range(4)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("policy", "first"), [("lpm", 2), ("fcfs", 1)])
def test_the_policy_says_whether_a_cached_prompt_passes(tiny_llama: Path, policy: str, first: int) -> None:
    engine = make_engine(tiny_llama, max_num_seqs=1, schedule_policy=policy)
    engine.add_request(0, 0, PROMPT, TWO_TOKENS)
    run(engine)
    engine.add_request(1, 0, [200 + i for i in range(40)], TWO_TOKENS)
    engine.add_request(2, 0, [*PROMPT, 5], TWO_TOKENS)
    order = []
    while engine.has_work():
        order += [output.request_id for output in engine.step()]
    assert order[0] == first


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("schedule_policy", "sjf", "lpm"),
        ("locality_quantum_tokens", 0, "a whole number from 1 to "),
        ("dedupe_steps", -1, "a whole number from 0 to "),
    ],
)
def test_what_cannot_be_is_refused(field: str, value: object, accepted: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .*{re.escape(accepted)}"):
        EngineOptions(models=(ModelOptions(path="x"),), **{field: value})  # type: ignore[arg-type]
