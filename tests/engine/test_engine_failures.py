"""What goes wrong for one request, or in one step, stays there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.engine import Engine
from tests.engine.engine_helpers import beside_a_sound_one, generate, make_engine
from tests.engine.tiny_models import Reference

PROMPT = list(range(40, 80))


@pytest.fixture
def engine(tiny_llama: Path) -> Engine:
    return make_engine(tiny_llama)


def test_not_a_number_ends_its_own_row_only(
    engine: Engine, llama_references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = engine.models[0].runner.model
    forward = model.forward

    def broken(step: Any) -> Any:
        logits = forward(step)
        if len(logits) == 2:
            logits[1] = np.nan
        return logits

    monkeypatch.setattr(engine.models[0].runner, "model", _Replaced(model, broken))
    fields = {"logprobs": 3, "repetition_penalty": 1.1}
    output = beside_a_sound_one(engine, llama_references[1], PROMPT, **fields)
    assert output.error is not None
    assert "not-a-number" in output.error.message


@pytest.mark.parametrize(
    ("broken", "fields"),
    [
        ("airi.engine.sampler.cpu.apply_penalties", {"repetition_penalty": 1.1}),
        ("airi.engine.sampler.gather_logprobs", {"logprobs": 3}),
        ("airi.engine.runner.gather_logprobs", {"prompt_logprobs": 3}),
    ],
)
def test_parameters_that_cannot_be_applied_end_their_own_row_only(
    engine: Engine,
    llama_references: list[Reference],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    fields: dict[str, Any],
) -> None:
    def fails(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(broken, fails)
    output = beside_a_sound_one(engine, llama_references[1], PROMPT, **fields)
    assert output.error is not None
    assert output.error.code == "execution_failed"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-50},
        {"temperature": 100.0},
        {"top_p": 1e-50},
        {"min_p": 1e-50},
        {"min_p": 1e-40},
        {"logit_bias": {3: 1e-50, 4: -100.0}},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0},
        {"presence_penalty": 1e-50, "frequency_penalty": -1e-50},
        {"logprobs": 100, "prompt_logprobs": 100},
    ],
)
def test_the_ends_of_every_range_can_be_sampled(engine: Engine, fields: dict[str, Any]) -> None:
    output = generate(engine, PROMPT, max_tokens=16, ignore_eos=True, **fields)
    assert (output.finish_reason, output.error, len(output.tokens)) == ("length", None, 16)


def test_a_failing_model_ends_the_requests_of_its_step_and_the_engine_lives(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(step: Any) -> Any:
        raise MemoryError

    runner = engine.models[0].runner
    with monkeypatch.context() as patch:
        patch.setattr(runner, "model", _Replaced(runner.model, fails))
        output = generate(engine, PROMPT, max_tokens=4)
    assert output.finish_reason == "error"
    assert output.error is not None
    assert output.error.code == "execution_failed"
    assert len(generate(engine, PROMPT, max_tokens=4).tokens) == 4


class _Replaced:
    """A model whose forward is another function."""

    def __init__(self, model: Any, forward: Any) -> None:
        self._model = model
        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
