"""What a call holds of its limits is given back once it is over, however long that takes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
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

from .conftest import StartGateway, events, wait_until

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
    wait_until(lambda: ledger.settled == 4, "a call was not settled")
    asked = asyncio.run_coroutine_threadsafe(ledger.remaining([SCOPE]), gateway.loop)
    parallel = next(one for one in asked.result(10) if one.name == "max_parallel_requests")
    assert parallel.remaining == parallel.limit
    metrics = gateway.http.get("/metrics").text
    assert "airi_client_disconnects_total 0.0" in metrics
    assert 'route="/v1/chat/completions",status="499"' not in metrics
