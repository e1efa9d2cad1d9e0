"""The engine of a device, run on the host: the same tokens as the CPU's, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.engine import Engine, ModelOptions
from airi.engine.backends.cuda.runner import DeviceRunner
from airi.outputs import Output

from .engine_helpers import GREEDY, MIB, add, make_engine, run

ON_DEVICE = {"backend": "cuda", "device": "cpu"}
PROMPTS = [list(range(3 + i, 4 + 8 * i)) for i in range(1, 7)]


Features = Callable[[int], dict[str, Any]]
FEATURES: dict[str, Features] = {
    "greedy": lambda i: GREEDY,
    "seeded": lambda i: {"seed": i, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    "penalties": lambda i: {
        "seed": i,
        "temperature": 0.7,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25 * (i % 2),
    },
    "bias": lambda i: {**GREEDY, "logit_bias": {7 + i: 4.5, 9: -100.0, 11: 3.0}},
    "min_tokens": lambda i: {
        "temperature": 0.0,
        "min_tokens": 5 + i,
        "stop_token_ids": tuple(range(0, 320, 5)),
    },
    "logprobs": lambda i: {**GREEDY, "logprobs": i % 3, "logit_bias": {5: 2.0}},
    "prompt_logprobs": lambda i: {**GREEDY, "prompt_logprobs": 2 if i % 2 else 0, "logprobs": 1},
}


def tokens(outputs: dict[int, Output]) -> dict[int, tuple[list[int], str | None]]:
    return {i: (output.tokens, output.finish_reason) for i, output in outputs.items()}


def serve(path: Path, features: Features, **options: Any) -> dict[int, Output]:
    """All prompts with these features, some of them mixed with plain ones."""
    engine = make_engine(path, max_batch_tokens=48, seed=1, **options)
    for i, prompt in enumerate(PROMPTS):
        add(engine, i, prompt, **{"max_tokens": 24, **features(i)})
        add(engine, 100 + i, prompt[::-1], max_tokens=12 + i, **GREEDY)
    outputs = run(engine)
    engine.check_invariants()
    assert engine.stats()[0].active_blocks == 0
    return outputs


@pytest.mark.parametrize("name", FEATURES)
def test_texts_are_those_of_the_cpu_also_one_step_at_a_time(tiny_llama: Path, name: str) -> None:
    expected = serve(tiny_llama, FEATURES[name])
    for ahead in (True, False):
        found = serve(tiny_llama, FEATURES[name], async_scheduling=ahead, **ON_DEVICE)
        assert tokens(found) == tokens(expected)
        for i, output in expected.items():
            assert_close(found[i].logprobs, output.logprobs)
            assert_close(found[i].prompt_logprobs, output.prompt_logprobs)


@pytest.mark.parametrize(
    "options",
    [
        {"kv_cache_dtype": "int8"},
        {"kv_cache_dtype": "fp8"},
        {"dtype": "float16"},
        {"dtype": "bfloat16", "quantization": "int8"},
    ],
    ids=str,
)
def test_fewer_bits_give_the_same_texts_ahead_and_not_and_with_prefix_hits(
    tiny_llama: Path, options: dict[str, Any]
) -> None:
    """Which texts those are is the model's matter."""
    found = []
    for ahead in (True, False):
        engine = make_engine(tiny_llama, async_scheduling=ahead, block_size=16, **options, **ON_DEVICE)
        assert engine.models[0].runner.model.info.kv_cache_dtype == options.get("kv_cache_dtype", "auto")
        for i, prompt in enumerate(PROMPTS):
            add(engine, i, prompt, max_tokens=16, **GREEDY)
        first = run(engine)
        add(engine, 99, PROMPTS[-1], max_tokens=16, **GREEDY)
        again = run(engine)[99]
        assert again.num_cached_tokens > 0
        assert again.finish_reason == "length"
        found.append(tokens(first))
    assert found[0] == found[1]


def assert_close(found: Any, expected: Any) -> None:
    if expected is None:
        assert found is None
        return
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        if theirs is None:
            assert mine is None
            continue
        assert (mine.token, mine.rank, mine.top_tokens) == (theirs.token, theirs.rank, theirs.top_tokens)
        np.testing.assert_allclose(mine.logprob, theirs.logprob, atol=1e-4)
        np.testing.assert_allclose(mine.top_logprobs, theirs.top_logprobs, atol=1e-4)


def test_steps_are_measured_as_they_are_going_to_run(
    tiny_llama: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured: what kernels take to compile would be learnt as what steps take."""
    seen: list[tuple[str, bool]] = []

    def measured(runner: DeviceRunner, step: Any) -> None:
        graphs = runner.model._bound._decodes._graphs  # type: ignore[attr-defined]
        seen.append((runner.model.info.path.name, bool(graphs)))
        run_apart(runner, step)

    run_apart = DeviceRunner.run_apart
    monkeypatch.setattr(DeviceRunner, "run_apart", measured)
    models = (ModelOptions(path=str(tiny_llama), sleepable=True),)
    engine = make_engine(models=models, kv_memory=24 * MIB, ttft_ms=500, step_warmup_s=0.01, **ON_DEVICE)
    wanted = run_one(engine, 0)
    engine.add_model(ModelOptions(path=str(tiny_qwen3)))
    while engine.is_moving:
        engine.step()
    assert set(seen) == {("llama", True), ("qwen3", True)}
    assert run_one(engine, 0) == wanted, "graphs of where weights were are gone"


def run_one(engine: Engine, model: int) -> list[int]:
    add(engine, 1, PROMPTS[0], model=model, max_tokens=12, **GREEDY)
    return run(engine)[1].tokens


def test_the_block_table_is_what_it_was_once_steps_have_been_measured(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, **ON_DEVICE)
    run_one(engine, 0)
    runner: Any = engine.models[0].runner
    before = runner.block_table.clone()
    with runner.spread_out(4):
        assert not runner.block_table.equal(before)
    assert runner.block_table.equal(before)
