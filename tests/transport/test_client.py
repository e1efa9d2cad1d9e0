"""EngineClient against a stub engine that speaks the real protocol."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from airi.errors import (
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    EngineStartError,
    ModelNotFoundError,
    QueueFullError,
    RequestError,
)
from airi.transport import EngineClient, GenerateRequest, Output, error_of
from airi.transport.messages import Progress
from airi.transport.server import EngineServer
from airi.transport.stub import StubOptions
from tests.transport.calls import collect, request
from tests.transport.conftest import running_stub


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


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://x", "ipc://" + "x" * 200])
async def test_what_is_no_endpoint_is_said_so(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=rf"endpoint is '{endpoint}'; give ipc://PATH or tcp://HOST:PORT"):
        await EngineClient.connect(endpoint)


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


async def test_a_metered_request_is_told_the_device_time_of_all_steps(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint, chunk=2, device_us=10, step_us=2000)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            outputs = client.generate(request(3, prompt=5, metered=True))
            seen = [(len(output.tokens), output.device_us) async for output in outputs]
            assert (await collect(client, request(3, prompt=5))).device_us == 70
    # 2 + 2 + 1 tokens of the prompt, of which the last gives the first of three; outputs may come together.
    assert [sum(column) for column in zip(*seen, strict=True)] == [3, 70]


async def test_an_output_without_a_token_is_heard_when_it_is_sent(endpoint: str) -> None:
    server = EngineServer(endpoint)
    connecting = asyncio.create_task(EngineClient.connect(endpoint, timeout_s=10))
    while server.num_clients == 0:
        server.poll(0)
        await asyncio.sleep(0.001)
    server.ready([])
    async with await connecting as client:
        stream = client.open(request(1, metered=True))
        while not (asked := [m for m in server.poll(0) if isinstance(m, GenerateRequest)]):
            await asyncio.sleep(0.001)
        number = asked[0].request_id
        for output in (Output(number, [], device_us=20), Output(number, [7], "length", device_us=10)):
            server.send_outputs(np.empty(0, np.int64), np.empty(0, np.int32), [output])
            heard = await anext(stream)
            assert (heard.tokens, heard.device_us) == (output.tokens, output.device_us)
    server.close()


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


async def test_calls_are_answered_each_to_its_client(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint)) as engine:
        async with (
            await EngineClient.connect(endpoint, timeout_s=10) as one,
            await EngineClient.connect(endpoint, timeout_s=10) as two,
        ):
            first, second, _ = await asyncio.gather(one.explain(11), two.explain(12), one.set_tenant(3, 2.0))
            assert (first, second) == (["request 11 is the stub's"], ["request 12 is the stub's"])
            assert engine.tenants == {3: 2.0}
            await two.sleep("stub")
            assert engine.asleep
            await two.wake("stub")
            assert not engine.asleep


async def test_a_call_that_cannot_be_read_is_answered_with_an_error(endpoint: str) -> None:
    with running_stub(StubOptions(endpoint=endpoint)):
        async with await EngineClient.connect(endpoint, timeout_s=10) as client:
            with pytest.raises(RequestError, match="Expected `float"):
                await client.set_tenant(1, "much")  # type: ignore[arg-type]
            await client.set_tenant(1, 2.0)


async def test_a_call_that_waits_when_its_client_closes_ends_with_an_error(endpoint: str) -> None:
    server = EngineServer(endpoint)
    connecting = asyncio.create_task(EngineClient.connect(endpoint, timeout_s=10))
    while server.num_clients == 0:
        server.poll(0)
        await asyncio.sleep(0.001)
    server.ready([])
    client = await connecting
    calling = asyncio.create_task(client.sleep("stub"))
    while not server.poll(0):
        await asyncio.sleep(0.001)
    client.close()
    with pytest.raises(EngineDeadError, match="client was closed"):
        await calling
    server.close()
