"""The model of the cuda backend on its kernels, in Triton's interpreter: tokens and logits of plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airi.engine.backends.cuda.ops import triton_ops
from tests.engine.cuda_harness import load
from tests.engine.harness import Harness, relative_error
from tests.engine.tiny_models import TINY_MODELS, TinyModel, make_checkpoint


def run(path: Path, **options: Any) -> tuple[list[list[int]], np.ndarray[Any, Any]]:
    """Two prompts, chunked for one of them, and two steps of decoding: tokens and logits."""
    harness = Harness(load(path, max_rows=3, **options), max_len=48)
    rng = np.random.default_rng(1)
    harness.step({0: rng.integers(3, 300, 20).tolist()})
    logits = harness.step({0: rng.integers(3, 300, 5).tolist(), 1: rng.integers(3, 300, 9).tolist()})
    found = list(logits)
    for _ in range(2):
        logits = harness.step({slot: [int(row[-1].argmax())] for slot, row in enumerate(logits)})
        found += logits
    rows = np.concatenate(found)
    return rows.argmax(-1).tolist(), rows


SPARSE = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mistral", {}),
        ("sparse", {}),
        # 5 to 15 s of one core each.
        pytest.param("gemma2", {}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"kv_cache_dtype": "fp8"}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"kv_cache_dtype": "int8"}, marks=pytest.mark.slow),
        pytest.param("sparse", {"quantization": "int8"}, marks=pytest.mark.slow),
    ],
)
def test_kernels_give_the_tokens_of_plain_torch(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TINY_MODELS, "sparse", TinyModel("MixtralConfig", 8, SPARSE))
    path = make_checkpoint(name, tmp_path)
    tokens, logits = run(path, ops=triton_ops(torch.device("cpu")), **options)
    expected_tokens, expected = run(path, **options)
    assert tokens == expected_tokens
    assert relative_error(logits, expected) < (2e-2 if "kv_cache_dtype" in options else 1e-4)
