"""The engine of a device with the kernels that sample on it, in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from airi.engine.backends.cuda import platform
from airi.engine.backends.cuda.sampling_ops import DeviceSamplingOps, GatheredLogprobs
from airi.kernels.logits import MAX_TOP
from airi.outputs import Output

from .engine_helpers import GREEDY, add, make_engine, run

PROMPT = list(range(3, 12))
REQUESTS: tuple[dict[str, Any], ...] = (
    GREEDY,
    {"seed": 1, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    {"seed": 2, "temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {**GREEDY, "logit_bias": {7: 4.5, 9: -100.0}, "logprobs": 2},
    {**GREEDY, "min_tokens": 3, "stop_token_ids": tuple(range(0, 320, 5)), "prompt_logprobs": 1},
)


def serve(path: Path, **options: Any) -> dict[int, Output]:
    engine = make_engine(path, seed=1, max_num_seqs=8, **options)
    for i, features in enumerate(REQUESTS):
        add(engine, i, PROMPT[i:], **{"max_tokens": 5, **features})
    return run(engine)


def test_what_any_request_may_ask_of_sampling_is_compiled_before_the_first_one(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[str, int]] = []

    class Watched(DeviceSamplingOps):
        def sample(self, logits: torch.Tensor, *rest: Any) -> None:
            launched.append(("sample", len(logits)))
            super().sample(logits, *rest)

        def start_counts(self, *arguments: Any) -> None:
            launched.append(("start_counts", 1))
            super().start_counts(*arguments)

        def count_tokens(self, *arguments: Any) -> None:
            launched.append(("count_tokens", 1))
            super().count_tokens(*arguments)

        def penalise(self, *arguments: Any) -> None:
            launched.append(("penalise", 1))
            super().penalise(*arguments)

        def add_to_logits(self, *arguments: Any) -> None:
            launched.append(("edit", 1))
            super().add_to_logits(*arguments)

        def gather_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, count: int) -> GatheredLogprobs:
            launched.append(("logprobs", 16 if count <= 16 else MAX_TOP))
            return super().gather_logprobs(logits, tokens, count)

    monkeypatch.setattr(platform, "sampling_ops_for", Watched)
    make_engine(tiny_llama, backend="cuda", device="cpu", max_num_seqs=16)
    rarer = {(name, 1) for name in ("start_counts", "count_tokens", "penalise", "edit")}
    rarer |= {("logprobs", 16), ("logprobs", MAX_TOP)}
    assert set(launched) == {("sample", rows) for rows in (1, 2, 16)} | rarer


def test_kernels_sample_what_the_cpu_does(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = serve(tiny_llama)
    monkeypatch.setattr(platform, "sampling_ops_for", DeviceSamplingOps)
    found = serve(tiny_llama, backend="cuda", device="cpu")
    for i, output in expected.items():
        assert (found[i].tokens, found[i].finish_reason) == (output.tokens, output.finish_reason)
    for of in ("logprobs", "prompt_logprobs"):
        for i in expected:
            for one, other in zip(getattr(found[i], of) or (), getattr(expected[i], of) or (), strict=True):
                if other is not None:
                    assert (one.rank, one.top_tokens) == (other.rank, other.top_tokens)
                    assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
