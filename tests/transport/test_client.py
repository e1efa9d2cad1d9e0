"""EngineClient against a stub engine that speaks the real protocol."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from airi.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineStartError,
    ModelNotFoundError,
    QueueFullError,
    RequestError,
)
from airi.sampling_params import SamplingParams
from airi.transport import EngineClient, GenerateRequest, Output, error_of
from airi.transport.messages import Progress
from airi.transport.server import EngineServer
from airi.transport.stub import StubOptions
from tests.transport.conftest import StartStub, running_stub


def request(
    max_tokens: int | None = 8, *, prompt: int = 3, model: str = "stub", **params: Any
) -> GenerateRequest:
    return GenerateRequest(
        model=model,
        tokens=GenerateRequest.pack_tokens(range(prompt)),
        params=SamplingParams(max_tokens=max_tokens, **params),
    )


async def collect(client: EngineClient, message: GenerateRequest) -> Output:
    """All outputs of a request as one."""
    whole: Output | None = None
    async for output in client.generate(message):
        if whole is None:
            whole = output
        else:
            whole.merge(output)
    assert whole is not None
    return whole


async def test_a_stream_gives_every_token_in_order(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint, reply=(7, 8, 9))):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            assert client.alive
            assert [model.name for model in client.models] == ["stub"]
            output = await collect(client, request(7))
    assert output.tokens == [7, 8, 9, 7, 8, 9, 7]
    assert output.finish_reason == "length"
    assert (output.num_prompt_tokens, output.num_generated_tokens) == (3, 7)


async def test_a_client_that_waits_is_told_how_far_loading_is(endpoint: str) -> None:
    server = EngineServer(endpoint)
    seen: list[Progress] = []
    connecting = asyncio.create_task(EngineClient.connect(endpoint, timeout_s=10, on_progress=seen.append))
    while server.num_clients == 0:
        server.poll(0)
        await asyncio.sleep(0.001)
    server.progress(Progress("stub", "weights", 1.0, 2.0))
    server.progress(Progress("stub", "weights", 2.0, 2.0))
    server.ready([])
    async with await connecting:
        assert [(p.model, p.stage, p.done) for p in seen[-2:]] == [
            ("stub", "weights", 1.0),
            ("stub", "weights", 2.0),
        ]
    server.close()


async def test_many_streams_do_not_mix(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            lengths = list(range(1, 129))
            outputs = await asyncio.gather(*(collect(client, request(n)) for n in lengths))
            assert client.num_running == 0
    assert [output.tokens for output in outputs] == [list(range(5, 5 + n)) for n in lengths]


async def test_two_clients_may_use_the_same_request_ids(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint)):
        async with (
            await EngineClient.connect(endpoint, timeout_s=10) as one,
            await EngineClient.connect(endpoint, timeout_s=10) as two,
        ):
            messages = [request(50), request(70)]
            for message in messages:
                message.request_id = 11
            first, second = await asyncio.gather(collect(one, messages[0]), collect(two, messages[1]))
    assert (len(first.tokens), len(second.tokens)) == (50, 70)


async def test_a_slow_reader_gets_its_tokens_coalesced(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            stream = client.open(request(100))
            while client.num_running:
                await asyncio.sleep(0.01)
            outputs = [output async for output in stream]
    assert len(outputs) == 1
    assert len(outputs[0].tokens) == 100


async def test_logprobs_and_stop_arrive_with_their_tokens(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint, stop_after=4)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            output = await collect(client, request(None, logprobs=2, prompt_logprobs=1))
    assert output.finish_reason == "stop"
    assert output.logprobs is not None
    assert [entry.token for entry in output.logprobs] == output.tokens
    assert all(len(entry.top_tokens) == 2 for entry in output.logprobs)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == 3


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (request(prompt=64), ContextLengthError),
        (request(model="other"), ModelNotFoundError),
    ],
)
async def test_a_refused_request_raises_its_error(
    endpoint: str, message: GenerateRequest, error: type[Exception]
) -> None:
    with running_stub(StubOptions(endpoint=endpoint, max_model_len=64)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            with pytest.raises(error):
                await collect(client, message)
            assert len((await collect(client, request(2))).tokens) == 2


async def test_a_priority_out_of_range_is_refused(endpoint: str) -> None:
    message = request(2)
    message.priority = 9
    with running_stub(StubOptions(endpoint=endpoint)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            with pytest.raises(RequestError, match=r"priority must be in \[-8, 8\], got 9"):
                await collect(client, message)


async def test_a_full_queue_raises_queue_full(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint, max_queued=1, step_us=1000)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            stream = client.open(request(4000))
            await anext(stream)
            with pytest.raises(QueueFullError):
                await collect(client, request(1))
            stream.close()


async def test_parameters_that_the_engine_cannot_read_end_the_request_with_an_error(endpoint: str) -> None:
    message = request(2)
    object.__setattr__(message.params, "temperature", -1.0)  # past this side's check
    with running_stub(StubOptions(endpoint=endpoint)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            with pytest.raises(RequestError, match="temperature"):
                await collect(client, message)


async def test_leaving_the_iteration_cancels_the_request(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint, step_us=500)) as engine:
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            stream = client.generate(request(4000))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            assert client.num_running == 0
            while engine.num_running:
                await asyncio.sleep(0.01)


async def test_cancel_ends_the_stream_with_its_reason(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint, step_us=500)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            message = request(4000)
            stream = client.open(message)
            await anext(stream)
            client.cancel(message.request_id)
            outputs = [output async for output in stream]
    assert outputs[-1].finish_reason == "cancelled"


async def test_a_sink_gets_errors_as_outputs(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            ended: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
            client.submit(request(model="other"), ended.set_result)
            output = await ended
    assert output.error is not None
    assert isinstance(error_of(output.error), ModelNotFoundError)


async def test_no_engine_at_the_endpoint_is_a_start_error(endpoint: str) -> None:
    with pytest.raises(EngineStartError, match="no engine answered"):
        await EngineClient.connect(endpoint, timeout_s=0.2)


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
    monkeypatch.setattr("airi.transport.messages._HEARTBEAT_TIMEOUT_MS", 2000)
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
    monkeypatch.setattr("airi.transport.messages._HEARTBEAT_TIMEOUT_MS", 2000)
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
        client.set_tenant(7, 2.0)
        await collect(client, request(1))
        assert first.tenants == {7: 2.0}
    while client.alive:
        await asyncio.sleep(0.01)
    client.set_tenant(8, 0.5)
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
