"""EngineClient beside engines that die, stand still, drain and come back."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from airi.errors import (
    EngineDeadError,
)
from airi.transport import EngineClient
from airi.transport.stub import StubOptions
from tests.transport.calls import collect, request
from tests.transport.conftest import StartStub, running_stub


async def test_killed_engine_ends_fifty_streams_and_the_next_request_works(
    endpoint: str, start_stub: StartStub
) -> None:
    process = start_stub("--step-us", "2000")
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        streams = [client.open(request(4000)) for _ in range(50)]
        for stream in streams:
            await anext(stream)
        process.kill()
        ends = await asyncio.gather(*(_drain(stream) for stream in streams))
        assert all(isinstance(end, EngineDeadError) for end in ends)
        assert not client.alive
        waiting = asyncio.create_task(collect(client, request(5)))  # waits for the next engine
        start_stub()
        assert len((await waiting).tokens) == 5
        assert client.alive


async def test_an_engine_that_stands_still_counts_as_dead(
    endpoint: str, start_stub: StartStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.transport.messages._HEARTBEAT_MS", 200)
    monkeypatch.setattr("airi.transport.messages.LONGEST_SILENCE_S", 2.0)
    process = start_stub("--step-us", "2000")
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        stream = client.open(request(4000))
        await anext(stream)
        process.send_signal(signal.SIGSTOP)
        assert isinstance(await _drain(stream), EngineDeadError)
        process.send_signal(signal.SIGCONT)
        assert len((await collect(client, request(5))).tokens) == 5


_CLIENT = """
import asyncio, sys
from airi.sampling_params import SamplingParams
from airi.transport import EngineClient, GenerateRequest

async def main():
    async with await EngineClient.connect(sys.argv[1], timeout_s=10) as client:
        params = SamplingParams(max_tokens=900_000)
        stream = client.open(GenerateRequest(model="stub", tokens=bytes(4), params=params))
        await anext(stream)
        print("streams", flush=True)
        try:
            async for _ in stream:
                pass
        except Exception as error:
            print(type(error).__name__, flush=True)

asyncio.run(main())
"""


def test_a_client_that_stands_still_counts_as_gone_and_hears_of_it(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.transport.messages._HEARTBEAT_MS", 200)
    monkeypatch.setattr("airi.transport.messages.LONGEST_SILENCE_S", 2.0)
    options = StubOptions(endpoint=endpoint, step_us=5000, max_model_len=1_000_000)
    command = [sys.executable, "-c", _CLIENT, endpoint]
    with (
        running_stub(options) as engine,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client,
    ):
        assert client.stdout is not None
        assert client.stdout.readline() == "streams\n"
        client.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 30
        while engine.num_running and time.monotonic() < until:
            time.sleep(0.01)
        forgotten = not engine.num_running
        client.send_signal(signal.SIGCONT if forgotten else signal.SIGKILL)
        assert forgotten
        assert client.stdout.readline() == "EngineDeadError\n"


async def test_what_an_engine_sent_before_it_ended_still_counts(endpoint: str, start_stub: StartStub) -> None:
    process = start_stub()
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        stream = client.open(request(1000))
        whole = await anext(stream)
        process.terminate()
        process.wait(10)  # this loop stands still until the engine has sent everything and is gone
        async for output in stream:
            whole.merge(output)
    assert len(whole.tokens) == 1000


async def test_requests_after_a_drained_engine_wait_for_the_next(
    endpoint: str, start_stub: StartStub
) -> None:
    process = start_stub("--step-us", "1000")
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        stream = client.open(request(100))
        await anext(stream)
        process.terminate()
        while client.alive:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(collect(client, request(5)))
        await asyncio.sleep(0)
        start_stub()
        assert len((await waiting).tokens) == 5


async def test_unstarted_requests_are_sent_again_and_started_ones_are_not(
    endpoint: str, start_stub: StartStub
) -> None:
    process = start_stub("--step-us", "300000")
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        started = client.open(request(4000))
        await anext(started)
        unstarted = asyncio.create_task(collect(client, request(6)))
        await asyncio.sleep(0)  # sent, but the step that would start it takes 300 ms
        process.kill()
        with pytest.raises(EngineDeadError):
            await anext(started)
        start_stub()
        assert len((await unstarted).tokens) == 6


async def test_a_request_of_which_only_prompt_steps_have_run_is_sent_again(
    endpoint: str, start_stub: StartStub
) -> None:
    process = start_stub("--step-us", "300000", "--chunk", "1", "--device-us", "5")
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        stream = client.open(request(6, prompt=40, metered=True))
        first = await anext(stream)
        assert (first.tokens, first.device_us) == ([], 5)
        process.kill()
        start_stub("--device-us", "1")
        tokens: list[int] = []
        async for output in stream:
            tokens += output.tokens
        assert len(tokens) == 6


async def test_a_cancelled_request_is_not_sent_again(endpoint: str, start_stub: StartStub) -> None:
    process = start_stub("--step-us", "300000")
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        await anext(client.open(request(4000)))
        message = request(6)
        stream = client.open(message)
        client.cancel(message.request_id)  # unread while the step takes its 300 ms
        process.kill()
        assert (await anext(stream)).finish_reason == "cancelled"


async def test_waiting_for_a_dead_engine_is_bounded(endpoint: str, start_stub: StartStub) -> None:
    process = start_stub()
    async with await EngineClient.connect(endpoint, timeout_s=10, retry_window_s=0.2) as client:
        process.kill()
        while client.alive:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineDeadError, match="no engine has answered"):
            await collect(client, request(5))
        with pytest.raises(EngineDeadError, match="no engine has answered"):
            await collect(client, request(5))


async def test_giving_up_stops_the_requests_of_an_engine_that_lives(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint, step_us=500, max_model_len=1_000_000)) as engine:
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            streams = [client.open(request(900_000)) for _ in range(3)]
            for stream in streams:
                await anext(stream)
            client.give_up(EngineDeadError("enough"))
            while engine.num_running:
                await asyncio.sleep(0.01)
            for stream in streams:
                assert isinstance(await _drain(stream), EngineDeadError)


async def test_tenant_weights_are_told_to_every_engine(endpoint: str) -> None:
    options = StubOptions(endpoint=endpoint)
    with running_stub(options) as first:
        client = await EngineClient.connect(endpoint, timeout_s=10)
        await client.set_tenant(7, 2.0)
        assert first.tenants == {7: 2.0}
    while client.alive:
        await asyncio.sleep(0.01)
    await client.set_tenant(8, 0.5)
    with running_stub(options) as second:
        await collect(client, request(1))
        assert second.tenants == {7: 2.0, 8: 0.5}
        client.close()


async def test_a_deadline_counts_while_the_engine_is_away(endpoint: str, start_stub: StartStub) -> None:
    process = start_stub()
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        process.kill()
        while client.alive:
            await asyncio.sleep(0.01)
        message = request(5)
        message.timeout_us = 1
        waiting = asyncio.create_task(collect(client, message))
        await asyncio.sleep(0)
        start_stub()
        assert (await waiting).finish_reason == "deadline"


async def test_a_terminated_engine_finishes_its_streams(endpoint: str, start_stub: StartStub) -> None:
    process = start_stub("--step-us", "1000")
    async with await EngineClient.connect(endpoint, timeout_s=10) as client:
        streams = [client.open(request(300)) for _ in range(5)]
        first = [await anext(stream) for stream in streams]
        process.terminate()
        for output, stream in zip(first, streams, strict=True):
            async for more in stream:
                output.merge(more)
        assert [len(output.tokens) for output in first] == [300] * 5
        assert await asyncio.to_thread(process.wait, 10) == 0


async def _drain(stream: Any) -> Exception | None:
    try:
        async for _ in stream:
            pass
    except EngineDeadError as error:
        return error
    return None
