"""Both backends compute what transformers computes, for every family, however the prompt arrives.

The error of a row of logits is its largest distance from transformers' row, divided by that row's largest absolute
logit (`harness.relative_error`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from airi._core import cpu
from airi.engine.backends import BACKENDS, LoadedModel, LoadOptions, get_backend
from tests.engine.harness import Harness, relative_error
from tests.engine.tiny_models import (
    STEPS,
    TINY_MODELS,
    Reference,
    compute_references,
    make_checkpoint,
    prompts,
    to_transformers_4,
)

FLOAT32_TOLERANCE = 1e-4

Checkpoints = Callable[[str], Path]
References = Callable[[str], list[Reference]]


def stacked(references: list[Reference]) -> NDArray[np.float32]:
    return np.concatenate([reference.prompt_logits for reference in references])


def rms_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Root mean square of the differences over that of the expected logits."""
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def load(path: Path, backend: str, name: str, dtype: str = "auto") -> LoadedModel:
    options = LoadOptions(dtype=dtype, max_model_len=TINY_MODELS[name].max_model_len)
    return get_backend(backend).load_model(path, options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_greedy_tokens_and_logits_are_those_of_transformers(
    name: str, backend: str, checkpoint: Checkpoints, references: References
) -> None:
    expected = references(name)
    harness = Harness(load(checkpoint(name), backend, name))
    tokens, logits = harness.greedy([reference.prompt for reference in expected], STEPS)
    for row, reference in enumerate(expected):
        assert tokens[row] == reference.tokens
        assert relative_error(logits[row], reference.step_logits) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("name", TINY_MODELS)
def test_reference_tokens_are_not_a_matter_of_rounding(name: str, references: References) -> None:
    for reference in references(name):
        assert reference.smallest_gap > 5 * FLOAT32_TOLERANCE
        assert len(set(reference.tokens)) > STEPS // 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.parametrize("chunk", [1, 11])
def test_a_chunked_prompt_gives_the_logits_of_a_whole_one(
    chunk: int, name: str, backend: str, checkpoint: Checkpoints, references: References
) -> None:
    reference = references(name)[-1]
    harness = Harness(load(checkpoint(name), backend, name))
    found = []
    for start in range(0, len(reference.prompt), chunk):
        (logits,) = harness.step({2: reference.prompt[start : start + chunk]}, all_logits=True)
        found.append(logits)
    assert relative_error(np.concatenate(found), reference.prompt_logits) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("name", TINY_MODELS)
def test_float32_logits_do_not_depend_on_batch_or_chunks_to_the_last_bit(
    name: str, checkpoint: Checkpoints, references: References
) -> None:
    prompts = [reference.prompt for reference in references(name)]
    model = load(checkpoint(name), "cpu", name)
    together = Harness(model).step(dict(enumerate(prompts)), all_logits=True)
    alone = Harness(model)
    for slot, prompt in enumerate(prompts):
        pieces = [
            alone.step({slot: prompt[at : at + 13]}, all_logits=True)[0] for at in range(0, len(prompt), 13)
        ]
        np.testing.assert_array_equal(np.concatenate(pieces), together[slot])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block_size", [1, 8, 32])
def test_any_block_size_gives_the_same_logits(
    block_size: int, backend: str, checkpoint: Checkpoints, references: References
) -> None:
    reference = references("mistral")[-1]
    harness = Harness(load(checkpoint("mistral"), backend, "mistral"), block_size=block_size)
    (logits,) = harness.step({0: reference.prompt}, all_logits=True)
    assert relative_error(logits, reference.prompt_logits) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    ["llama-llama3", "llama-yarn-biases", "llama-linear-tied", "qwen2-window", "phi3", "gemma3", "mixtral"],
)
def test_configs_of_transformers_4_give_the_same_model(
    name: str, backend: str, references: References, tmp_path: Path
) -> None:
    reference = references(name)[-1]
    folder = make_checkpoint(name, tmp_path)
    to_transformers_4(folder)
    (logits,) = Harness(load(folder, backend, name)).step({0: reference.prompt}, all_logits=True)
    assert relative_error(logits, reference.prompt_logits) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["qwen3-moe", "llama-yarn-biases"])
def test_a_sharded_checkpoint_gives_the_same_model(
    name: str, backend: str, references: References, tmp_path: Path
) -> None:
    reference = references(name)[-1]
    folder = make_checkpoint(name, tmp_path, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    (logits,) = Harness(load(folder, backend, name)).step({0: reference.prompt}, all_logits=True)
    assert relative_error(logits, reference.prompt_logits) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("name", TINY_MODELS)
def test_bfloat16_is_no_further_from_float32_than_transformers_bfloat16(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(name, tmp_path, dtype="bfloat16")
    exact = stacked(compute_references(folder, dtype="float32", steps=1))
    allowed = rms_error(stacked(compute_references(folder, dtype="bfloat16", steps=1)), exact)
    for backend in BACKENDS:
        model = load(folder, backend, name)
        assert model.info.dtype == "bfloat16"
        rows = Harness(model).step(dict(enumerate(prompts())), all_logits=True)
        assert rms_error(np.concatenate(rows), exact) < allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_weights_run_as_bfloat16_unless_float32_is_asked_for(
    backend: str, references: References, tmp_path: Path
) -> None:
    folder = make_checkpoint("qwen2", tmp_path, dtype="float16")
    reference = references("qwen2")[2]
    # Rounding the weights to 11 bits moves the logits a little, to 8 bits more.
    for dtype, expected, tolerance in (("auto", "bfloat16", 0.1), ("float32", "float32", 5e-3)):
        model = load(folder, backend, "qwen2", dtype)
        assert model.info.dtype == expected
        (logits,) = Harness(model).step({1: reference.prompt}, all_logits=True)
        assert rms_error(logits, reference.prompt_logits) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_asked_for_rows_get_logits(
    backend: str, checkpoint: Checkpoints, references: References
) -> None:
    reference = references("llama")[2]
    model = load(checkpoint("llama"), backend, "llama")
    harness = Harness(model)
    (last,) = harness.step({0: reference.prompt})
    assert last.shape == (1, model.info.vocab_size)
    assert relative_error(last, reference.prompt_logits[-1:]) < FLOAT32_TOLERANCE
    more = model.logits(np.array([5, 0], np.int32))
    assert relative_error(more, reference.prompt_logits[[5, 0]]) < FLOAT32_TOLERANCE
    assert model.logits(np.array([], np.int32)).shape == (0, model.info.vocab_size)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "qwen3-moe"])
@pytest.mark.parametrize("isa", cpu.supported_isas())
def test_every_instruction_set_computes_what_transformers_does(
    isa: str, name: str, checkpoint: Checkpoints, references: References
) -> None:
    before = cpu.isa()
    cpu.set_isa(isa)
    try:
        expected = references(name)
        prompts_of_rows = dict(enumerate(reference.prompt for reference in expected))
        rows = Harness(load(checkpoint(name), "cpu", name)).step(prompts_of_rows, all_logits=True)
    finally:
        cpu.set_isa(before)
    for found, reference in zip(rows, expected, strict=True):
        assert relative_error(found, reference.prompt_logits) < FLOAT32_TOLERANCE
