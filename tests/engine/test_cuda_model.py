"""The cuda backend's model computes what transformers does, for every family; plain torch stands in for kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine.cuda_harness import load
from tests.engine.harness import Harness, relative_error
from tests.engine.tiny_models import TINY_MODELS, Reference

FLOAT32_TOLERANCE = 1e-4

Checkpoints = Callable[[str], Path]
References = Callable[[str], list[Reference]]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_greedy_tokens_and_logits_are_those_of_transformers(
    name: str, checkpoint: Checkpoints, references: References
) -> None:
    expected = references(name)
    model = load(checkpoint(name), max_model_len=TINY_MODELS[name].max_model_len)
    tokens, logits = Harness(model).greedy([reference.prompt for reference in expected], 24)
    for row, reference in enumerate(expected):
        assert tokens[row] == reference.tokens[:24]
        assert relative_error(logits[row], reference.step_logits[:24]) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gemma2"])
@pytest.mark.parametrize("chunk", [1, 11])
def test_a_chunked_prompt_gives_the_logits_of_a_whole_one(
    chunk: int, name: str, checkpoint: Checkpoints, references: References
) -> None:
    reference = references(name)[-1]
    harness = Harness(load(checkpoint(name)))
    found = []
    for start in range(0, len(reference.prompt), chunk):
        (logits,) = harness.step({2: reference.prompt[start : start + chunk]}, all_logits=True)
        found.append(logits)
    assert relative_error(np.concatenate(found), reference.prompt_logits) < FLOAT32_TOLERANCE
