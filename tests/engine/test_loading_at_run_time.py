"""Models that come and go in an engine process, from afar."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from airi.engine.options import ModelOptions
from airi.errors import CheckpointError, ConfigError, ModelNotFoundError
from airi.transport import EngineClient, EngineSupervisor
from tests.transport.calls import collect

from .engine_helpers import GREEDY, MIB
from .process_helpers import options, request
from .tiny_models import Reference


async def _has(client: EngineClient, *names: str) -> None:
    while [model.name for model in client.models] != list(names):
        await asyncio.sleep(0.01)


async def test_models_come_and_go_beside_the_requests_of_others(
    tiny_llama: Path, tiny_qwen3: Path, llama_references: list[Reference], qwen3_references: list[Reference]
) -> None:
    given = replace(
        options(tiny_llama, kv_memory=24 * MIB), models=(ModelOptions(path=str(tiny_llama), kv_min=MIB),)
    )
    async with EngineSupervisor(given) as client, await EngineClient.connect(client.endpoint) as other:
        running = asyncio.gather(
            *(collect(client, request(r.prompt, max_tokens=64, **GREEDY)) for r in llama_references)
        )
        loaded = await client.load(ModelOptions(path=str(tiny_qwen3), name="qwen3", aliases=("q",)))
        assert (loaded.name, loaded.aliases) == ("qwen3", ("q",))
        assert [model.name for model in client.models] == ["llama", "qwen3"]
        await _has(other, "llama", "qwen3")  # it may hear of it later than who asked
        assert other.find_model("q").path == str(tiny_qwen3)
        assert [output.tokens for output in await running] == [r.tokens for r in llama_references]

        messages = [request(r.prompt, model="q", max_tokens=64, **GREEDY) for r in qwen3_references]
        answers = asyncio.gather(*(collect(other, message) for message in messages))
        await asyncio.sleep(0)
        await other.unload("qwen3")
        assert [output.tokens for output in await answers] == [r.tokens for r in qwen3_references]
        await _has(client, "llama")
        with pytest.raises(ModelNotFoundError, match="'q' is not loaded; loaded: llama"):
            await collect(client, request([1, 2], model="q", max_tokens=1))
        again = await client.load(ModelOptions(path=str(tiny_qwen3), name="qwen3"))
        assert again.name == "qwen3"


async def test_what_cannot_come_or_go_changes_nothing(
    tiny_llama: Path, tiny_qwen3: Path, tmp_path: Path
) -> None:
    given = replace(
        options(tiny_llama, kv_memory=24 * MIB), models=(ModelOptions(path=str(tiny_llama), kv_min=MIB),)
    )
    async with EngineSupervisor(given) as client:
        with pytest.raises(CheckpointError, match=r"config\.json"):
            await client.load(ModelOptions(path=str(tmp_path), name="nothing"))
        with pytest.raises(ConfigError, match="model name 'llama' is taken"):
            await client.load(ModelOptions(path=str(tiny_qwen3), name="llama"))
        with pytest.raises(ConfigError, match=r"kv_min of qwen3 is 1\.0 TiB; the memory for keys"):
            await client.load(ModelOptions(path=str(tiny_qwen3), name="qwen3", kv_min=2**40))
        with pytest.raises(ConfigError, match="llama is the only model"):
            await client.unload("llama")
        with pytest.raises(ModelNotFoundError, match="'other'"):
            await client.unload("other")
        both = [ModelOptions(path=str(tiny_qwen3), name=name) for name in ("one", "two")]
        infos = await asyncio.gather(*(client.load(each) for each in both))
        assert [info.name for info in infos] == ["one", "two"]
        assert [model.name for model in client.models] == ["llama", "one", "two"]


async def test_an_engine_of_fixed_memory_says_what_it_takes(tiny_llama: Path, tiny_qwen3: Path) -> None:
    async with EngineSupervisor(options(tiny_llama)) as client:
        with pytest.raises(ConfigError, match="give kv_min, kv_max or sleepable to one"):
            await client.load(ModelOptions(path=str(tiny_qwen3), name="qwen3"))


async def test_an_engine_that_is_started_again_has_what_the_one_before_it_had(
    tiny_llama: Path, tiny_qwen3: Path
) -> None:
    given = replace(
        options(tiny_llama, kv_memory=24 * MIB), models=(ModelOptions(path=str(tiny_llama), kv_min=MIB),)
    )
    supervisor = EngineSupervisor(given)

    async def after_death(client: EngineClient) -> list[str]:
        pid = supervisor.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while client.alive:  # it hears of the death by itself, before or after the next engine is started
            await asyncio.sleep(0.01)
        while not client.alive:
            await asyncio.sleep(0.01)
        return [model.name for model in client.models]

    async with supervisor as client:
        await client.load(ModelOptions(path=str(tiny_qwen3), name="qwen3"))
        await client.unload("llama")
        assert await after_death(client) == ["qwen3"]
        # Once more within a short time: it may be what was loaded that kills it.
        assert await after_death(client) == ["llama"]
