"""Every family through the whole engine gives transformers' greedy tokens, however the engine gets there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.engine_helpers import GREEDY, add, make_engine, run
from tests.engine.tiny_models import STEPS, TINY_MODELS, Reference


@pytest.mark.parametrize("name", TINY_MODELS)
def test_tokens_are_those_of_transformers_whatever_the_engine_does(
    name: str, checkpoint: Callable[[str], Path], references: Callable[[str], list[Reference]]
) -> None:
    folder = checkpoint(name)
    window = TINY_MODELS[name].max_model_len
    roomy = make_engine(folder, max_batch_tokens=24, max_model_len=window)
    # The longest two prompts need 8 and 10 blocks at their ends; 14 hold one of them and a part of the other.
    blocks = 14 * roomy.models[0].runner.model.bytes_per_block(16)
    tight = make_engine(folder, max_batch_tokens=50, max_model_len=window, kv_memory=blocks)
    for engine in (roomy, roomy, tight):  # the second time with prefix hits
        for index, reference in enumerate(references(name)):
            add(engine, index, reference.prompt, max_tokens=STEPS, **GREEDY)
        outputs = run(engine)
        assert [outputs[index].tokens for index in range(len(outputs))] == [
            reference.tokens for reference in references(name)
        ]
    assert roomy.stats()[0].hit_tokens > 0
    assert tight.stats()[0].preemptions > 0
