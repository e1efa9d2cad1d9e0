"""What of a config the gateway holds: open pages, the weights of tenants, a signal that reads it again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from airi.config import ConfigFile, parse
from airi.config.reload import apply
from airi.errors import ConfigError
from airi.gateway.options import AppOptions
from airi.gateway.reloading import Hangup, TenantNumbers, TenantWeights
from airi.transport import EngineClient

from .conftest import StartGateway

PAGES = ("/health", "/ready", "/version", "/metrics", "/openapi.json", "/v1/models")


def answers(start_gateway: StartGateway, app: AppOptions) -> dict[str, int]:
    gateway = start_gateway(app=app)
    return {page: gateway.http.get(page).status_code for page in PAGES}


def test_where_keys_are_asked_for_only_probes_are_open(start_gateway: StartGateway) -> None:
    found = answers(start_gateway, AppOptions(needs_key=True))
    assert [page for page, status in found.items() if status == 200] == ["/health", "/ready", "/version"]
    assert {status for status in found.values() if status != 200} == {401}


def test_pages_are_open_that_are_said_to_be(start_gateway: StartGateway) -> None:
    app = AppOptions(needs_key=True, open_pages=("/metrics", "/openapi.json"))
    gateway = start_gateway(app=app)
    assert gateway.http.get("/metrics").status_code == 200
    assert gateway.http.get("/v1/models").status_code == 401
    document = gateway.http.get("/openapi.json").json()
    assert "security" not in document["paths"]["/metrics"]["get"]
    assert "security" in document["paths"]["/v1/models"]["get"]


def test_without_prometheus_there_is_no_page_of_metrics(start_gateway: StartGateway) -> None:
    gateway = start_gateway(app=AppOptions(metrics_page=False))
    assert gateway.http.get("/metrics").status_code == 404
    assert "/metrics" not in gateway.http.get("/openapi.json").json()["paths"]


class FakeClient:
    """An engine that hears weights."""

    def __init__(self, refuses: float | None = None) -> None:
        self.weights: list[tuple[int, float]] = []
        self.refuses = refuses

    async def set_tenant(self, tenant: int, weight: float, *, kv_quota: float | None = None) -> None:
        if weight == self.refuses:
            raise ConfigError("no such weight")
        self.weights.append((tenant, weight))


def tenants(**weights: float) -> ConfigFile:
    entries = [{"name": name, "weight": weight} for name, weight in weights.items()]
    document: Any = {"version": 1, "models": [{"name": "m", "source": "s"}], "tenants": entries}
    return parse(json.dumps(document))


def change(client: FakeClient, old: ConfigFile, new: ConfigFile) -> None:
    async def run() -> None:
        part = TenantWeights(cast(EngineClient, client), TenantNumbers())
        await part.start(old.config)
        client.weights.clear()
        await apply(old, new, [part])

    asyncio.run(run())


def test_the_engine_hears_the_weights_that_are_other_than_before() -> None:
    client = FakeClient()
    change(client, tenants(a=2, b=3, c=1), tenants(a=2, b=4, d=5, c=1))
    assert client.weights == [(2, 4.0), (3, 5.0)]


def test_a_weight_that_is_refused_takes_the_others_back() -> None:
    client = FakeClient(refuses=9)
    with pytest.raises(ConfigError, match="no such weight"):
        change(client, tenants(a=2, b=3), tenants(a=7, b=9))
    assert client.weights == [(1, 7.0), (1, 2.0), (2, 3.0)]


def test_numbers_of_tenants_stay_and_begin_at_1() -> None:
    number = TenantNumbers()
    assert [number(name) for name in ("a", "b", "a", "c")] == [1, 2, 1, 3]


def on_main_thread(check: Callable[[Hangup], Awaitable[None]]) -> None:
    async def run() -> None:
        with Hangup().installed() as hangup:
            await check(hangup)

    asyncio.run(run())
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_hangup_before_anything_serves_is_remembered() -> None:
    reloads: list[str] = []

    async def reload() -> None:
        reloads.append("again")

    async def check(hangup: Hangup) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        while not hangup.requested:
            await asyncio.sleep(0.001)
        assert reloads == []
        hangup.reloads(reload)
        os.kill(os.getpid(), signal.SIGHUP)
        while len(reloads) < 2:
            await asyncio.sleep(0.001)

    on_main_thread(check)
    assert reloads == ["again", "again"]


def test_a_reload_that_runs_at_the_end_is_cancelled() -> None:
    ended: list[str] = []

    async def reload() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("yes")

    async def check(hangup: Hangup) -> None:
        hangup.reloads(reload)
        hangup()
        await asyncio.sleep(0)

    on_main_thread(check)
    assert ended == ["yes"]
