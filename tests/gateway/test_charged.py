"""What a call is charged for in the end: what the engine has done, whatever became of the answer."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
from airi.outputs import ErrorInfo, FinishReason
from airi.policy.ledger import Limits, LimitTable, ProcessLedger, Scope
from airi.sampling_params import SamplingParams
from airi.text import Tokenizer
from airi.transport import GenerateRequest, Output

from .conftest import Gateway, StartGateway, wait_until
from .test_generation import start

PROMPT = [5, 6, 7]
MOST = 1 << 40
SCOPE = Scope(tenant="anyone")


class Counted:
    """Gateways under a ledger whose counts the test can see."""

    def __init__(self) -> None:
        limits = Limits(requests_per_minute=MOST, input_tokens_per_minute=MOST, output_tokens_per_minute=MOST)
        self.table = LimitTable({SCOPE: limits})
        self.ledger = ProcessLedger(self.table)

    async def __call__(self) -> Government:
        await self.ledger.set_limits(self.table)
        return Government(decider_of(None, ("tiny",)), Limiter(self.ledger, self.table, lambda *_: 0))

    def used(self, gateway: Gateway) -> tuple[int, ...]:
        """Requests, tokens of prompts and tokens of answers, of the last minute."""
        asked = asyncio.run_coroutine_threadsafe(self.ledger.remaining([SCOPE]), gateway.loop)
        return tuple(one.limit - one.remaining for one in asked.result(10))


def complete(gateway: Gateway, **changes: Any) -> httpx.Response:
    return gateway.http.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT} | changes)


def scrape(gateway: Gateway) -> str:
    return gateway.http.get("/metrics").text


@pytest.mark.parametrize(
    ("reason", "error", "device_us", "charged"),
    [
        ("error", "queue_full", 0, (0, 0, 0)),
        ("error", "engine_dead", 0, (0, 0, 0)),
        ("cancelled", None, 0, (0, 0, 0)),
        ("error", "invalid_request", 0, (1, 0, 0)),  # as where no grammar can be made of a form
        ("error", "execution_failed", 9, (1, len(PROMPT), 0)),
        ("deadline", None, 0, (1, 0, 0)),
        ("deadline", None, 9, (1, len(PROMPT), 0)),
    ],
)
def test_what_ends_before_its_first_token_is_charged_for_what_the_caller_had_done(
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
    reason: FinishReason,
    error: str | None,
    device_us: int,
    charged: tuple[int, ...],
) -> None:
    counted = Counted()
    gateway = start_gateway(govern=counted)
    server = gateway.stub.server

    def end(request: GenerateRequest) -> None:
        info = None if error is None else ErrorInfo(error, "no")
        output = Output(request.request_id, [], reason, error=info, device_us=device_us)
        server.send_outputs(np.empty(0, np.int64), np.empty(0, np.int32), [output])

    monkeypatch.setattr(gateway.stub, "_add", end)
    assert complete(gateway).status_code >= 400
    assert counted.used(gateway) == charged


def test_what_a_client_never_read_is_charged_all_the_same(start_gateway: StartGateway) -> None:
    counted = Counted()
    gateway = start_gateway(govern=counted, max_model_len=1 << 20)
    body = {"model": "tiny", "prompt": PROMPT, "stream": True, "logprobs": 20, "max_tokens": 1 << 19}
    text = json.dumps(body).encode()
    address = urlsplit(gateway.url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((address.hostname, address.port))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n"
        client.sendall(head.encode() + text)
        wait_until(lambda: gateway.stub._generated > 6000, "the stub has stopped")
    wait_until(lambda: "airi_client_disconnects_total 1.0" in scrape(gateway), "nobody hung up")
    assert gateway.stub.num_running == 0
    assert counted.used(gateway) == (1, len(PROMPT), gateway.stub._generated)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_behind_a_stop_string_are_charged(start_gateway: StartGateway, stream: bool) -> None:  # noqa: FBT001
    counted = Counted()
    gateway = start_gateway(govern=counted, answer="Hello", max_model_len=1 << 20)
    response = complete(gateway, stop=["lo"], stream=stream, max_tokens=1 << 19)
    assert response.status_code == 200
    wait_until(
        lambda: counted.used(gateway) == (1, len(PROMPT), gateway.stub._generated), "it was not settled"
    )
    assert gateway.stub.num_running == 0


@pytest.mark.parametrize("reason", ["length", "cancelled", "error"])
async def test_the_block_is_left_once_the_engine_has_ended_what_it_ran(
    model_folder: Path, tokenizer: Tokenizer, reason: FinishReason
) -> None:
    client, generation = start(model_folder, tokenizer, SamplingParams())
    (request_id,) = client.sinks

    async def leave() -> None:
        async with generation:
            client.give(request_id, [5, 6])

    leaving = asyncio.create_task(leave())
    await asyncio.sleep(0)
    assert client.cancelled == [request_id]
    assert not leaving.done()
    error = ErrorInfo("engine_dead", "it died") if reason == "error" else None
    client.sinks[request_id](Output(request_id, [7], reason, error=error))
    await asyncio.wait_for(leaving, 10)
    assert generation.num_generated == 3
