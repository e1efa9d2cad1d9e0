"""A device's engine in its own process, and behind `airi.LLM`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch

from airi import LLM, SamplingParams
from airi.bench.shapes import Shape, make_checkpoint
from airi.engine import Engine
from airi.transport import EngineSupervisor
from tests.transport.calls import collect

from .engine_helpers import GREEDY, MIB
from .process_helpers import options, request
from .tiny_models import Reference

SHAPE = Shape(hidden=64, inner=128, layers=2, heads=4, kv_heads=2, head_dim=32, vocab=512, window=256)


async def test_streams_through_the_process_are_those_of_transformers(
    tiny_llama: Path, llama_references: list[Reference]
) -> None:
    """Bursts with pauses: the process listens for requests while steps run, and while none does."""
    supervisor = EngineSupervisor(options(tiny_llama, backend="cuda", device="cpu", max_num_seqs=8))
    await supervisor.start()
    try:
        for _ in range(2):
            messages = [request(reference.prompt, max_tokens=64, **GREEDY) for reference in llama_references]
            outputs = await asyncio.gather(*(collect(supervisor.client, message) for message in messages))
            assert [output.tokens for output in outputs] == [r.tokens for r in llama_references]
            await asyncio.sleep(0.05)
    finally:
        await supervisor.stop()


def test_loading_tells_of_weights_and_graphs(tiny_llama: Path) -> None:
    seen: list[tuple[str, str, float, float]] = []
    given = options(tiny_llama, backend="cuda", device="cpu", max_num_seqs=4)
    Engine(given, lambda *progress: seen.append(progress))
    ends = {stage: (done, total) for _, stage, done, total in seen}
    assert list(ends) == ["weights", "graphs"]
    assert all(done == total > 0 for done, total in ends.values())


def test_a_model_that_slept_and_gave_its_memory_back_gives_what_it_gave_before(tmp_path: Path) -> None:
    """The arena comes back elsewhere: views of it must follow, and graphs be captured again."""
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompts = ["the cat sat", "on the mat and in the hat"]
    make_checkpoint(SHAPE, tmp_path)
    where: dict[str, Any] = {"device": "cpu", "backend": "cuda", "kv_memory": 16 * MIB, "max_num_seqs": 4}
    with LLM(tmp_path, dtype="float32", threads=1, sleepable=True, name="m", **where) as llm:
        before = [output.outputs[0].token_ids for output in llm.generate(prompts, greedy)]
        memory = llm._engine._hosting.arena._memory  # type: ignore[attr-defined]
        assert isinstance(memory, torch.Tensor)
        for _ in range(2):
            llm.sleep()
            assert memory.untyped_storage().nbytes() == 0
            llm.wake_up()
            assert memory.untyped_storage().nbytes() == memory.numel()
            assert [output.outputs[0].token_ids for output in llm.generate(prompts, greedy)] == before
