"""Several devices in an engine process and behind `airi.LLM`, and 8 bits on them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi import LLM, SamplingParams
from airi.bench.shapes import Shape, make_checkpoint
from airi.engine import EngineOptions, ModelOptions
from airi.errors import CheckpointError, ConfigError, EngineDeadError
from airi.transport import EngineSupervisor, GenerateRequest
from tests.engine.engine_helpers import GREEDY, MIB, add, make_engine, run
from tests.engine.parallel_helpers import wait_until_ended, workers_of
from tests.engine.tiny_models import Reference, prompts
from tests.transport.calls import collect

pytestmark = pytest.mark.slow  # 40 s: each process imports torch

ONE: dict[str, Any] = {"backend": "cuda", "device": "cpu"}
TWO: dict[str, Any] = {**ONE, "tensor_parallel_size": 2}


def request(prompt: list[int], max_tokens: int) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, **GREEDY)
    return GenerateRequest(model="llama", tokens=GenerateRequest.pack_tokens(prompt), params=params)


async def restarted(supervisor: EngineSupervisor, died: int) -> int:
    """The process that follows one that died."""
    while supervisor.pid is None or supervisor.pid == died:
        await asyncio.sleep(0.05)
    return supervisor.pid


async def test_an_engine_whose_worker_dies_under_a_stream_or_at_rest_is_started_again(
    tiny_llama: Path, llama_references: list[Reference]
) -> None:
    models = (ModelOptions(path=str(tiny_llama)),)
    options = EngineOptions(models=models, kv_memory=8 * MIB, max_num_seqs=8, **TWO)
    messages = [request(reference.prompt, 64) for reference in llama_references]
    supervisor = EngineSupervisor(options, first_delay_s=0.01)
    async with supervisor as client:
        outputs = await asyncio.gather(*(collect(client, message) for message in messages))
        assert [output.tokens for output in outputs] == [reference.tokens for reference in llama_references]
        assert supervisor.pid is not None
        first = supervisor.pid
        (worker,) = workers_of(first)
        stream = client.open(request([5], 480))
        await anext(stream)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass
        second = await restarted(supervisor, first)
        reference = llama_references[0]
        assert (await collect(client, request(reference.prompt, 64))).tokens == reference.tokens
        (worker,) = workers_of(second)
        os.kill(worker, signal.SIGKILL)  # nobody asks for anything
        third = await restarted(supervisor, second)
        assert (await collect(client, request(reference.prompt, 64))).tokens == reference.tokens
        (worker,) = workers_of(third)
    wait_until_ended(worker)


async def test_an_engine_that_is_terminated_serves_what_it_has_with_all_devices(tiny_llama: Path) -> None:
    models = (ModelOptions(path=str(tiny_llama)),)
    options = EngineOptions(models=models, kv_memory=8 * MIB, max_num_seqs=8, **TWO)
    supervisor = EngineSupervisor(options, drain_s=240)
    async with supervisor as client:
        assert supervisor.pid is not None
        (worker,) = workers_of(supervisor.pid)
        stream = client.open(request([5], 60))
        count = len((await anext(stream)).tokens)
        for pid in (worker, supervisor.pid):  # as service managers do
            os.kill(pid, signal.SIGTERM)
        async for output in stream:
            count += len(output.tokens)
        assert count == 60
    wait_until_ended(worker)


def test_the_offline_api_says_that_its_engine_died(tmp_path: Path) -> None:
    make_checkpoint(
        Shape(hidden=64, inner=128, layers=2, heads=4, kv_heads=2, head_dim=32, vocab=512), tmp_path
    )
    fields: dict[str, Any] = {"dtype": "float32", "kv_memory": 8 * MIB}

    def ask() -> list[int]:
        (output,) = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=8, **GREEDY))
        return output.outputs[0].token_ids

    llm = LLM(tmp_path, **fields, **TWO)
    (worker,) = workers_of(os.getpid())
    with LLM(tmp_path, **fields, **ONE) as alone:
        (expected,) = alone.generate([[5, 6, 7]], SamplingParams(max_tokens=8, **GREEDY))
    assert ask() == expected.outputs[0].token_ids
    os.kill(worker, signal.SIGKILL)
    wait_until_ended(worker)
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="rank 1"):
            ask()
    llm.close()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        LLM(tmp_path, **fields, **TWO)
    assert caught.tb
    assert not workers_of(os.getpid())


@pytest.mark.parametrize(
    "options", [{"kv_cache_dtype": "int8"}, {"kv_cache_dtype": "fp8"}, {"quantization": "int8"}], ids=str
)
def test_8_bits_are_cut_as_all_else_is(tiny_llama: Path, options: dict[str, Any]) -> None:
    """Scales of keys and values are per head, and equal; those of weights that are cut by columns are finer."""
    found = []
    for platform in (ONE, TWO):
        engine = make_engine(tiny_llama, **options, **platform)
        for index, prompt in enumerate(prompts()):
            add(engine, index, prompt, max_tokens=8, prompt_logprobs=0, **GREEDY)
        found.append(run(engine))
        engine.close()
    alone, shared = found
    for index, output in alone.items():
        if "kv_cache_dtype" in options:
            assert shared[index].tokens == output.tokens
        pairs = zip(output.prompt_logprobs or [], shared[index].prompt_logprobs or [], strict=True)
        errors = [a.logprob - b.logprob for a, b in pairs if a is not None and b is not None]
        assert np.abs(errors).max(initial=0.0) < (1.0 if "quantization" in options else 1e-4)


def test_a_cut_that_does_not_divide_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^tensor_parallel_size is 3; it must divide the model's num_attention_heads"
    ):
        make_engine(tiny_llama, **{**TWO, "tensor_parallel_size": 3})
    assert not workers_of(os.getpid())
