"""Limits of device time over HTTP: a call that uses the last of it ends, whatever it is doing, and others go on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
from airi.gateway.options import AppOptions
from airi.policy.ledger import Budget, LimitName, Limits, LimitTable, ProcessLedger, Scope

from .conftest import Gateway, StartGateway, events, wait_until

TOKEN_US = 1000
STUB = {"device_us": TOKEN_US, "step_us": 3000}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400}


class Limited:
    """Gateways under a ledger of their own, whose counts the test can see."""

    def __init__(self, *tenants: str, tokens: int, period_s: int | None = None) -> None:
        """Each tenant may use the device for so many tokens."""
        budget = Budget(amount_micro=tokens * TOKEN_US, period_s=period_s)
        self.scopes = [Scope(tenant=tenant) for tenant in tenants or ("anyone",)]
        self.table = LimitTable(dict.fromkeys(self.scopes, Limits(device_seconds=budget)))
        self.ledger = ProcessLedger(self.table)

    async def __call__(self) -> Government:
        await self.ledger.set_limits(self.table)
        return Government(decider_of(None, ("tiny",)), Limiter(self.ledger, self.table, lambda *_: 0))

    def tokens(self, gateway: Gateway, tenant: int = 0) -> float:
        """What a tenant has used, at most its limit."""
        asked = asyncio.run_coroutine_threadsafe(self.ledger.remaining([self.scopes[tenant]]), gateway.loop)
        (one,) = asked.result(10)
        assert one.name is LimitName.DEVICE
        return (one.limit - one.remaining) / TOKEN_US


def ask(gateway: Gateway, key: str = "none", **changes: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return gateway.http.post("/v1/chat/completions", json=CHAT | changes, headers=headers)


def told_tokens(gateway: Gateway) -> float:
    """What the metrics say that the device was used for."""
    found = re.search(r'airi_request_device_seconds_total{model_name="tiny"} (\S+)', scrape(gateway))
    assert found is not None
    return round(float(found[1]) * 1e6) / TOKEN_US


def scrape(gateway: Gateway) -> str:
    return gateway.http.get("/metrics").text


def test_a_stream_ends_with_an_error_where_its_time_is_used_up(start_gateway: StartGateway) -> None:
    limited = Limited(tokens=60)
    gateway = start_gateway(govern=limited, **STUB)
    response = ask(gateway, stream=True)
    assert response.status_code == 200
    *chunks, last = events(response.text)
    assert last["error"]["param"] == "max_device_seconds"
    assert last["error"]["code"] == "insufficient_quota"
    assert last["error"]["message"].startswith("max_device_seconds of tenant 'anyone' is 0.06: used up")
    assert len(chunks) > 10
    again = ask(gateway)
    assert again.status_code == 429
    assert again.json()["error"]["param"] == "max_device_seconds"
    wait_until(lambda: gateway.stub.num_running == 0, "the engine was not told")
    # One step was charged ahead. On a busy machine the stub runs some more before it hears of the end.
    assert 59 <= told_tokens(gateway) < 400


def test_an_answer_that_is_not_streamed_is_a_429_that_says_when_to_come_back(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(govern=Limited(tokens=60, period_s=86_400), **STUB)
    response = ask(gateway)
    assert response.status_code == 429
    assert response.json()["error"]["param"] == "max_device_seconds"
    assert 0 < int(response.headers["retry-after"]) <= 86_400
    wait_until(lambda: gateway.stub.num_running == 0, "the engine was not told")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_uses_it_up_is_a_429_before_any_token(
    start_gateway: StartGateway,
    stream: bool,  # noqa: FBT001
) -> None:
    gateway = start_gateway(govern=Limited(tokens=100), chunk=10, **STUB)
    body = {"model": "tiny", "prompt": [5] * 300, "stream": stream}
    response = gateway.http.post("/v1/completions", json=body)
    assert response.status_code == 429
    assert response.json()["error"]["param"] == "max_device_seconds"
    wait_until(lambda: gateway.stub.num_running == 0, "the engine was not told")
    assert 50 <= told_tokens(gateway) < 300


def test_all_choices_use_one_budget(start_gateway: StartGateway) -> None:
    limited = Limited(tokens=200)
    gateway = start_gateway(govern=limited, **STUB)
    response = ask(gateway, n=3, max_tokens=20)
    assert response.status_code == 200
    assert limited.tokens(gateway) == told_tokens(gateway)
    assert ask(gateway, n=3, max_tokens=300, stream=True).text.count("max_device_seconds") == 2
    wait_until(lambda: gateway.stub.num_running == 0, "the engine was not told")


def test_what_a_call_used_is_charged_whatever_ended_it(start_gateway: StartGateway) -> None:
    limited = Limited(tokens=100_000)
    gateway = start_gateway(
        govern=limited, answer="Hello", **STUB | {"step_us": 50_000}
    )  # 20 s to hang up in
    ask(gateway, max_tokens=7)
    ask(gateway, stop=["lo"])
    ask(gateway, stop=["lo"], stream=True, n=2)
    with gateway.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        next(response.iter_bytes())  # and hangs up
    wait_until(lambda: "airi_client_disconnects_total 1.0" in scrape(gateway), "nobody hung up")
    wait_until(
        lambda: limited.tokens(gateway) == told_tokens(gateway), "the ledger has counted something else"
    )
    wait_until(lambda: gateway.stub.num_running == 0, "the engine was not told")


def test_a_tenant_that_has_used_its_time_up_takes_none_of_anothers(start_gateway: StartGateway) -> None:
    limited = Limited("flag:1", "flag:2", tokens=60)
    gateway = start_gateway(govern=limited, app=AppOptions(api_keys=("sk-a", "sk-b")), **STUB)
    assert ask(gateway, "sk-a").status_code == 429
    assert limited.tokens(gateway, 1) == 0
    assert ask(gateway, "sk-b", max_tokens=10).status_code == 200
    assert ask(gateway, "sk-a").status_code == 429


def test_without_a_limit_of_it_no_call_is_metered(start_gateway: StartGateway) -> None:
    metered: list[bool] = []

    def watch(add: Callable[[Any], None]) -> Callable[[Any], None]:
        def seen(request: Any) -> None:
            metered.append(request.metered)
            add(request)

        return seen

    for govern in (Limited(tokens=10_000), None):
        gateway = start_gateway(**({"govern": govern} if govern else {}), **STUB)
        gateway.stub._add = watch(gateway.stub._add)  # type: ignore[assignment,method-assign]
        assert ask(gateway, max_tokens=5).status_code == 200
    assert metered == [True, False]
