"""The engine process with a real model: loading, streams, death, draining, orphans."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from airi.engine import Engine
from airi.engine.options import EngineOptions, ModelOptions
from airi.errors import ConfigError, EngineDeadError, ModelNotFoundError, RequestError
from airi.transport import EngineClient, EngineSupervisor
from tests.engine.engine_helpers import GREEDY, MIB, records
from tests.engine.tiny_models import Reference
from tests.transport.calls import collect

from .process_helpers import COMMAND, options, request, start_process


@pytest.fixture
async def supervisor(tiny_llama: Path) -> AsyncIterator[EngineSupervisor]:
    supervisor = EngineSupervisor(options(tiny_llama), first_delay_s=0.01)
    await supervisor.start()
    yield supervisor
    await supervisor.stop()


async def test_streams_through_the_process_are_those_of_transformers(
    supervisor: EngineSupervisor, llama_references: list[Reference]
) -> None:
    client = supervisor.client
    model = client.find_model("llama")
    assert (model.vocab_size, model.max_model_len, model.dtype) == (323, 512, "float32")
    messages = [request(reference.prompt, max_tokens=64, **GREEDY) for reference in llama_references]
    outputs = await asyncio.gather(*(collect(client, message) for message in messages))
    assert [output.tokens for output in outputs] == [reference.tokens for reference in llama_references]


def test_loading_tells_its_progress(tiny_llama: Path) -> None:
    seen: list[tuple[str, str, float, float]] = []
    Engine(options(tiny_llama), lambda *progress: seen.append(progress))
    models, stages, done, totals = (set(column) for column in zip(*seen, strict=True))
    assert models == {"llama"}
    assert "weights" in stages
    assert max(done) == max(totals)


async def test_errors_cross_the_process_boundary_as_themselves(supervisor: EngineSupervisor) -> None:
    with pytest.raises(ModelNotFoundError, match="loaded: llama"):
        await collect(supervisor.client, request([5], model="other"))


async def test_a_deadline_is_relative_to_the_engines_receipt(supervisor: EngineSupervisor) -> None:
    output = await collect(supervisor.client, request([5], max_tokens=400, timeout_us=0, **GREEDY))
    assert output.finish_reason == "deadline"


async def test_a_malformed_request_ends_alone(supervisor: EngineSupervisor) -> None:
    client = supervisor.client
    torn = request([5, 6], max_tokens=3)
    torn.tokens = torn.tokens[:-1]
    foreign = request([5], max_tokens=3)
    foreign.tenant = 2**63
    for message in (torn, foreign):
        with pytest.raises(RequestError, match="could not be read"):
            await collect(client, message)
    assert len((await collect(client, request([5], max_tokens=3, **GREEDY))).tokens) == 3


@pytest.mark.parametrize(
    ("tenant", "weight", "kv_quota", "message"),
    [
        (8, -1.0, None, "weight of tenant 8 is -1; it must be a positive number"),
        (9, float("nan"), None, "weight of tenant 9 is nan; it must be a positive number"),
        (2**63, 1.0, None, "tenant is 9223372036854775808; it must be a whole number of 64 bits"),
        (9, 1.0, 1.5, "kv_quota of tenant 9 is 1.5; it must be in"),
    ],
)
async def test_a_tenant_that_cannot_be_is_refused_in_one_line_and_does_no_harm(
    supervisor: EngineSupervisor, tenant: int, weight: float, kv_quota: float | None, message: str
) -> None:
    client = supervisor.client
    await client.set_tenant(7, 2.0)
    with pytest.raises(ConfigError, match=message) as raised:
        await client.set_tenant(tenant, weight, kv_quota=kv_quota)
    assert "\n" not in str(raised.value)
    assert (await collect(client, request([5], max_tokens=1, **GREEDY))).finish_reason == "length"


async def test_quotas_are_set_from_afar_until_there_are_too_many(supervisor: EngineSupervisor) -> None:
    client = supervisor.client
    for tenant in range(64):
        await client.set_tenant(tenant, 1.0, kv_quota=0.001)
    with pytest.raises(ConfigError, match="kv_quota of tenant 64: at most 64 tenants"):
        await client.set_tenant(64, 1.0, kv_quota=0.001)
    await client.set_tenant(64, 1.0)


async def test_a_client_is_told_why_of_its_own_requests_only(supervisor: EngineSupervisor) -> None:
    client = supervisor.client
    message = request([5], max_tokens=3, **GREEDY)
    await collect(client, message)
    lines = await client.explain(message.request_id)
    assert len(lines) >= 2
    assert all(lines)
    async with await EngineClient.connect(supervisor.endpoint, timeout_s=10) as other:
        assert await other.explain(message.request_id) == []


async def test_models_sleep_and_wake_from_afar(tiny_llama: Path, tiny_qwen3: Path) -> None:
    models = tuple(ModelOptions(path=str(path), sleepable=True) for path in (tiny_llama, tiny_qwen3))
    async with EngineSupervisor(
        EngineOptions(models=models, kv_memory=24 * MIB, max_num_seqs=8, threads=1)
    ) as client:
        busy = client.open(request([5] * 8, model="qwen3", max_tokens=300, **GREEDY))
        await anext(busy)
        await client.sleep("llama")
        with pytest.raises(
            ConfigError, match="llama: a model must be awake or moving in to sleep, got asleep"
        ):
            await client.sleep("llama")
        waiting = client.open(request([5], max_tokens=3, **GREEDY))
        assert len((await collect(client, request([5], model="qwen3", max_tokens=5, **GREEDY))).tokens) == 5
        await client.sleep("qwen3")
        await client.wake("llama")
        assert [output.finish_reason async for output in waiting][-1] == "length"
        with pytest.raises(ModelNotFoundError, match="loaded: llama, qwen3"):
            await client.wake("other")
        while client.stats is None or client.stats.models[1].state != "asleep":
            await asyncio.sleep(0.02)
        assert client.stats.models[0].state == "awake"
        await client.wake("qwen3")
        assert [output.finish_reason async for output in busy][-1] == "length"


async def test_while_all_that_is_left_waits_for_sleepers_the_engine_rests_but_keeps_deadlines(
    tiny_llama: Path, tmp_path: Path
) -> None:
    log = tmp_path / "steps"
    models = (ModelOptions(path=str(tiny_llama), sleepable=True),)
    async with EngineSupervisor(
        EngineOptions(
            models=models,
            kv_memory=16 * MIB,
            max_num_seqs=8,
            threads=1,
            record_steps=str(log),
        )
    ) as client:
        await client.sleep("llama")
        waiting = client.open(request([5], max_tokens=3, **GREEDY))
        late = await collect(client, request([5], max_tokens=3, timeout_us=500_000, **GREEDY))
        assert late.finish_reason == "deadline"
        await client.wake("llama")
        assert [output.finish_reason async for output in waiting][-1] == "length"
    times = [record[1] for record in records(log) if record[0] == "step" and record[2] is None]
    # Every 2 ms in the half second before the deadline, it would be 250 steps.
    most = max(sum(at <= other < at + 400_000 for other in times) for at in times)
    assert most < 40


async def test_a_model_that_cannot_sleep_says_so(supervisor: EngineSupervisor) -> None:
    with pytest.raises(ConfigError, match="llama cannot sleep; sleepable is not set for it"):
        await supervisor.client.sleep("llama")


async def test_a_call_under_which_the_engine_dies_ends_with_an_error(supervisor: EngineSupervisor) -> None:
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGSTOP)
    calling = asyncio.create_task(supervisor.client.explain(1))
    await asyncio.sleep(0.05)
    os.kill(supervisor.pid, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="died before it answered"):
        await calling
    with pytest.raises(EngineDeadError, match="no engine serves at"):
        await supervisor.client.sleep("llama")


async def test_a_client_that_leaves_has_its_requests_cancelled(supervisor: EngineSupervisor) -> None:
    watcher = supervisor.client
    other = await EngineClient.connect(supervisor.endpoint, timeout_s=10)
    stream = other.open(request([5], max_tokens=500, **GREEDY))
    await anext(stream)
    other.close()
    while watcher.stats is None or watcher.stats.models[0].running or not watcher.stats.models[0].steps > 1:
        await asyncio.sleep(0.02)


async def test_killed_under_fifty_streams_each_ends_and_the_next_request_works(
    supervisor: EngineSupervisor,
) -> None:
    client = supervisor.client
    streams = [client.open(request([5 + i], max_tokens=500, **GREEDY)) for i in range(50)]
    for stream in streams:
        await anext(stream)
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass
    assert len((await collect(client, request([5], max_tokens=7, **GREEDY))).tokens) == 7
    assert supervisor.num_restarts == 1


async def test_requests_that_had_not_started_are_served_after_the_restart(
    supervisor: EngineSupervisor, llama_references: list[Reference]
) -> None:
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGSTOP)
    messages = [request(reference.prompt, max_tokens=64, **GREEDY) for reference in llama_references]
    waiting = [asyncio.create_task(collect(supervisor.client, message)) for message in messages]
    await asyncio.sleep(0.05)
    os.kill(supervisor.pid, signal.SIGKILL)
    outputs = await asyncio.gather(*waiting)
    assert [output.tokens for output in outputs] == [reference.tokens for reference in llama_references]


async def test_terminated_under_load_it_finishes_and_exits_with_zero(
    tiny_llama: Path, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/engine"
    process = start_process(options(tiny_llama), endpoint)
    async with await EngineClient.connect(endpoint, timeout_s=30) as client:
        messages = [request([5 + i], max_tokens=200, **GREEDY) for i in range(20)]
        streams = [client.open(message) for message in messages]
        counts = [len((await anext(stream)).tokens) for stream in streams]
        process.send_signal(signal.SIGTERM)
        while not client.draining:
            await asyncio.sleep(0.005)
        with pytest.raises(EngineDeadError, match="shutting down"):
            await collect(client, request([5], max_tokens=1))
        for index, stream in enumerate(streams):
            async for output in stream:
                counts[index] += len(output.tokens)
        assert counts == [200] * 20
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_what_outlasts_draining_ends_with_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/engine"
    process = start_process(options(tiny_llama), endpoint, "--drain-s", "0")
    async with await EngineClient.connect(endpoint, timeout_s=30) as client:
        stream = client.open(request([5], max_tokens=500, **GREEDY))
        await anext(stream)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(EngineDeadError, match="drains for 0 s"):
            async for _ in stream:
                pass
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_why_a_dead_engine_cannot_start_again_is_logged(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    async with (
        supervisor := EngineSupervisor(options(folder), first_delay_s=0.01, max_failures=1)
    ) as client:
        (folder / "config.json").unlink()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="given up"):
            await collect(client, request([5], model="model", max_tokens=500, **GREEDY))
    assert f"the engine cannot start again: {folder}/config.json is missing" in caplog.messages


def test_an_engine_whose_parent_dies_does_not_stay(tiny_llama: Path, tmp_path: Path) -> None:
    """A parent in between starts the engine, tells its pid and is killed."""
    encoded = json.dumps({"models": [{"path": str(tiny_llama)}], "kv_memory": 8 * MIB, "threads": 1})
    endpoint = f"ipc://{tmp_path}/engine"
    code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen({[*COMMAND, '--endpoint', endpoint, '--options', encoded]!r}"
        " + ['--parent-pid', str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert asyncio.run(_serves(endpoint))
        parent.kill()
    wait_gone(pid)


async def _serves(endpoint: str) -> bool:
    async with await EngineClient.connect(endpoint, timeout_s=30) as client:
        return client.alive


def wait_gone(pid: int) -> None:
    """Returns when the process has ended (pytest's own timeout bounds the wait)."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
