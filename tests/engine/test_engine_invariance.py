"""In float32 a request's text depends on the request alone, not on what else is in the batch or the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.engine import Engine
from airi.outputs import Output
from tests.engine.engine_helpers import Exact, add, gather, make_engine, run
from tests.engine.tiny_models import VOCAB_SIZE

PROMPT = np.random.default_rng(3).integers(3, VOCAB_SIZE, 75).tolist()
PROBES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "seed": 7},
    "filtered": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "seed": 2**63 + 1},
    "penalised": {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "seed": 11},
}
PROBE_ID = 1000


def add_probe(engine: Engine, probe: str, request_id: int = PROBE_ID) -> None:
    add(engine, request_id, PROMPT, max_tokens=40, ignore_eos=True, logprobs=1, **PROBES[probe])


def add_company(engine: Engine, count: int, seed: int = 0) -> None:
    """Requests of many kinds and lengths."""
    rng = np.random.default_rng(seed)
    kinds = [*PROBES.values(), {"logit_bias": {5: 2.0}}, {"logprobs": 3}]
    for index in range(count):
        prompt = rng.integers(3, VOCAB_SIZE, int(rng.integers(1, 120))).tolist()
        add(engine, index, prompt, max_tokens=int(rng.integers(1, 50)), **kinds[index % len(kinds)])


def told(output: Output) -> tuple[list[int], Exact]:
    """What must not change: tokens, and their log-probabilities to the last bit."""
    assert output.logprobs is not None
    return output.tokens, Exact(entry.logprob for entry in output.logprobs)


@pytest.fixture(scope="module")
def alone(tiny_llama: Path) -> dict[str, tuple[list[int], Exact]]:
    """Every probe on an engine of its own."""
    results = {}
    for probe in PROBES:
        engine = make_engine(tiny_llama)
        add_probe(engine, probe)
        results[probe] = told(run(engine)[PROBE_ID])
    return results


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("admission", ["max_util", "no_evict"])
@pytest.mark.parametrize("max_batch_tokens", [24, 256])
def test_company_and_chunking_do_not_change_the_text(
    tiny_llama: Path, alone: dict[str, Any], probe: str, admission: str, max_batch_tokens: int
) -> None:
    engine = make_engine(tiny_llama, admission=admission, max_batch_tokens=max_batch_tokens)
    outputs: dict[int, Output] = {}
    add_company(engine, 5)
    for _ in range(3):
        gather(outputs, engine.step())
    add_probe(engine, probe)
    for index in range(5, 12):  # joins while the probe runs
        gather(outputs, engine.step())
        add(engine, index, PROMPT[: 3 * index], max_tokens=9, **PROBES["filtered"])
    for output in run(engine).values():
        gather(outputs, [output])
    assert told(outputs[PROBE_ID]) == alone[probe]


@pytest.mark.parametrize("probe", PROBES)
def test_prefix_hits_do_not_change_the_text(tiny_llama: Path, alone: dict[str, Any], probe: str) -> None:
    engine = make_engine(tiny_llama)
    add_probe(engine, "greedy", 1)
    run(engine)
    add_probe(engine, probe)
    output = run(engine)[PROBE_ID]
    assert output.num_cached_tokens == len(PROMPT) // 16 * 16
    assert told(output) == alone[probe]


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("max_batch_tokens", [24, 256])
def test_preemption_does_not_change_the_text(
    tiny_llama: Path, alone: dict[str, Any], probe: str, max_batch_tokens: int
) -> None:
    engine = make_engine(
        tiny_llama,
        kv_memory=16 * 16384,  # 16 blocks; a probe needs 8
        max_batch_tokens=max_batch_tokens,
        prefix_caching=False,
    )
    for request_id in range(PROBE_ID, PROBE_ID + 4):
        add_probe(engine, probe, request_id)
    outputs = run(engine)
    assert engine.stats()[0].preemptions > 0
    for request_id in range(PROBE_ID, PROBE_ID + 4):
        assert told(outputs[request_id]) == alone[probe]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_text(tiny_llama: Path, alone: dict[str, Any], threads: int) -> None:
    engine = make_engine(tiny_llama, threads=threads)
    add_probe(engine, "sampled")
    assert told(run(engine)[PROBE_ID]) == alone["sampled"]
