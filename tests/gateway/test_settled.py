"""What a call holds of its limits is given back once it is over, however long that takes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
from airi.gateway.options import ServerOptions
from airi.policy.ledger import (
    Budget,
    Demand,
    Limits,
    LimitTable,
    ProcessLedger,
    Remaining,
    Reservation,
    Scope,
)
from airi.sampling_params import SamplingParams
from airi.text import Tokenizer
from airi.transport import Output

from .conftest import StartGateway, events, gateway_thread, wait_until
from .test_generation import start

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
SCOPE = Scope(tenant="anyone")
TABLE = LimitTable(
    {SCOPE: Limits(max_parallel_requests=1000, device_seconds=Budget(amount_micro=10**12, period_s=None))}
)


class FarLedger(ProcessLedger):
    """Answers as one on another machine does: late."""

    settled = 0

    async def settle(self, reservation: Reservation, used: Demand, device_us: int = 0) -> bool:
        await asyncio.sleep(0.05)
        done = await super().settle(reservation, used, device_us)
        self.settled += 1
        return done

    async def charge_device(self, reservation: Reservation, device_us: int) -> Remaining | None:
        await asyncio.sleep(0.05)
        return await super().charge_device(reservation, device_us)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_answered_is_settled_and_nobody_has_hung_up(
    start_gateway: StartGateway,
    stream: bool,  # noqa: FBT001
) -> None:
    ledger = FarLedger(TABLE)

    async def govern() -> Government:
        await ledger.set_limits(TABLE)
        return Government(decider_of(None, ("tiny",)), Limiter(ledger, TABLE, lambda *_: 0))

    gateway = start_gateway(govern=govern, device_us=1000)
    for _ in range(4):
        # Each on a connection of its own, which is closed as soon as the answer is there.
        headers = {"connection": "close"}
        answer = gateway.http.post("/v1/chat/completions", json=CHAT | {"stream": stream}, headers=headers)
        assert answer.status_code == 200
        assert not stream or "choices" in events(answer.text)[-1]
    # Each as a request and for its tokens.
    wait_until(lambda: ledger.settled == 8, "a call was not settled")
    asked = asyncio.run_coroutine_threadsafe(ledger.remaining([SCOPE]), gateway.loop)
    parallel = next(one for one in asked.result(10) if one.name == "max_parallel_requests")
    assert parallel.remaining == parallel.limit
    metrics = gateway.http.get("/metrics").text
    assert "airi_client_disconnects_total 0.0" in metrics
    assert 'route="/v1/chat/completions",status="499"' not in metrics


async def test_an_engine_that_says_nothing_is_waited_for_so_long_and_no_longer(
    model_folder: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("airi.gateway.generation.LONGEST_SILENCE_S", 0.05)
    limits = LimitTable({SCOPE: Limits(max_parallel_requests=1, device_seconds=Budget(amount_micro=10**9))})
    ledger = ProcessLedger(limits)
    await ledger.set_limits(limits)

    async def used() -> dict[str, int]:
        return {one.name: one.limit - one.remaining for one in await ledger.remaining([SCOPE])}

    client, generation = start(model_folder, tokenizer, SamplingParams(), SamplingParams())
    held = await Limiter(ledger, limits, lambda *_: 0).reserve(
        "anyone", "m", "standard", (1, 4, 1000), generation.end
    )
    assert held is not None
    generation.charge_to(held)
    first, second = client.sinks
    async with generation:
        client.give(first, [5, 6], "length")
    assert client.cancelled == [second]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "model m: the engine has not ended a cancelled call in 0.05 s; what it held of limits is given back"
    )
    assert (await used())["max_parallel_requests"] == 0
    # What the engine says of it later still counts.
    client.sinks[second](Output(second, [7], "cancelled", device_us=300))
    await asyncio.sleep(0.01)
    assert (await used())["max_device_seconds"] == 300


def test_a_client_that_leaves_an_engine_that_is_stopped_frees_its_place(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.gateway.generation.LONGEST_SILENCE_S", 0.05)
    table = LimitTable({SCOPE: Limits(max_parallel_requests=1)})
    ledger = ProcessLedger(table)

    async def govern() -> Government:
        await ledger.set_limits(table)
        return Government(decider_of(None, ("tiny",)), Limiter(ledger, table, lambda *_: 0))

    endpoint = f"ipc://{tmp_path}/engine"
    command = [sys.executable, "-m", "airi.transport.stub", "--endpoint", endpoint, "--name", "tiny"]
    engine = subprocess.Popen([*command, "--model-path", str(model_folder)], stdout=subprocess.PIPE)
    try:
        with gateway_thread(endpoint, ServerOptions(port=0), govern) as (listening, loop):
            url = f"{listening.url}/v1/chat/completions"
            assert httpx.post(url, json=CHAT, timeout=60).status_code == 200
            os.kill(engine.pid, signal.SIGSTOP)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=CHAT, timeout=0.5)

            def is_free() -> bool:
                asked = asyncio.run_coroutine_threadsafe(ledger.remaining([SCOPE]), loop)
                return all(one.remaining == one.limit for one in asked.result(10))

            wait_until(is_free, "the place is still held")
            os.kill(engine.pid, signal.SIGCONT)
            assert httpx.post(url, json=CHAT, timeout=60).status_code == 200
    finally:
        engine.kill()
        engine.communicate()
