"""Random traffic: whatever comes, every request ends once and nothing stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.engine.engine import now_us
from airi.errors import ContextLengthError, QueueFullError
from airi.outputs import Output
from tests.engine.engine_helpers import add, gather, make_engine
from tests.engine.tiny_models import VOCAB_SIZE


def random_request(rng: np.random.Generator) -> dict[str, Any]:
    """A prompt, perhaps with a beginning that others share, and parameters of any kind."""
    shared = [7] * int(rng.choice([0, 16, 40]))
    prompt = shared + rng.integers(3, VOCAB_SIZE, int(rng.integers(1, 90))).tolist()
    fields: dict[str, Any] = {"prompt": prompt, "max_tokens": int(rng.integers(1, 60))}
    fields |= {
        "temperature": float(rng.choice([0.0, 0.7, 1.3])),
        "priority": int(rng.integers(-8, 9)),
        "tenant": int(rng.integers(0, 4)),
        "model": int(rng.integers(0, 2)),
    }
    if rng.random() < 0.1:
        fields["deadline_us"] = now_us() + int(rng.integers(-1000, 5000))
    if rng.random() < 0.2:
        fields["logprobs"] = 2
    if rng.random() < 0.1:
        fields["prompt_logprobs"] = 1
    if rng.random() < 0.2:
        fields["repetition_penalty"] = 1.2
    if rng.random() < 0.2:
        fields["stop_token_ids"] = tuple(rng.integers(3, VOCAB_SIZE, 20).tolist())
    return fields


def check_whole(output: Output, fields: dict[str, Any]) -> None:
    """An ended request's tokens, counts and log-probabilities fit together."""
    assert output.error is None
    assert len(output.tokens) == output.num_generated_tokens <= fields["max_tokens"]
    if output.finish_reason == "length":
        assert len(output.tokens) == fields["max_tokens"]
    if output.finish_reason == "stop":
        assert output.stop_token == output.tokens[-1]
        assert output.stop_token in (2, *fields.get("stop_token_ids", ()))
    if output.tokens and "logprobs" in fields:
        assert output.logprobs is not None
        assert [entry.token for entry in output.logprobs] == output.tokens
    if output.tokens and "prompt_logprobs" in fields:
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(fields["prompt"])


@pytest.mark.parametrize("admission", ["max_util", "no_evict"])
@pytest.mark.parametrize("seed", range(4))
def test_every_request_ends_once_and_nothing_stays(
    tiny_llama: Path, tiny_qwen3: Path, admission: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    engine = make_engine(
        tiny_llama,
        tiny_qwen3,
        admission=admission,
        kv_memory=2 * 4 * 2**20,
        max_num_seqs=int(rng.integers(1, 9)),
        max_batch_tokens=int(rng.choice([16, 50, 256])),
        max_queued=24,
    )
    known: dict[int, dict[str, Any]] = {}
    outputs: dict[int, Output] = {}
    for request_id in range(120):
        fields = random_request(rng)
        rest = dict(fields)
        try:
            add(engine, request_id, rest.pop("prompt"), **rest)
            known[request_id] = fields
        except (QueueFullError, ContextLengthError):
            pass
        if rng.random() < 0.2:
            engine.cancel(int(rng.integers(0, request_id + 1)))
        for _ in range(int(rng.integers(0, 8))):
            gather(outputs, engine.step())
        engine.check_invariants()
    while engine.has_work():
        gather(outputs, engine.step())
    engine.check_invariants()
    assert outputs.keys() == known.keys()
    for request_id, output in outputs.items():
        assert output.finish_reason is not None
        check_whole(output, known[request_id])
    for model in engine.stats():
        assert (model.running, model.waiting, model.active_blocks) == (0, 0, 0)
