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
from airi.config.options import tenant_options
from airi.config.reload import Part, apply
from airi.errors import ConfigError, LedgerUnavailableError
from airi.gateway.access import open_access
from airi.gateway.gate import Government
from airi.gateway.governing import LimitsPart, decider_of
from airi.gateway.options import AppOptions
from airi.gateway.reloading import Hangup, TenantsPart
from airi.policy.keys import create_key
from airi.policy.ledger import Ledger, LimitTable, ProcessLedger, Scope
from airi.state import open_store

from .conftest import StartGateway

PAGES = ("/health", "/ready", "/version", "/metrics", "/openapi.json", "/v1/models")


def answers(start_gateway: StartGateway, app: AppOptions) -> dict[str, int]:
    gateway = start_gateway(app=app)
    return {page: gateway.http.get(page).status_code for page in PAGES}


def test_where_keys_are_asked_for_only_probes_are_open(start_gateway: StartGateway) -> None:
    found = answers(start_gateway, AppOptions(api_keys=("k",)))
    assert [page for page, status in found.items() if status == 200] == ["/health", "/ready", "/version"]
    assert {status for status in found.values() if status != 200} == {401}


def test_pages_are_open_that_are_said_to_be(start_gateway: StartGateway) -> None:
    app = AppOptions(api_keys=("k",), open_pages=("/metrics", "/openapi.json"))
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


class FakeEngine:
    """Hears weights."""

    def __init__(self, refuses: float | None = None) -> None:
        self.weights: list[tuple[int, float]] = []
        self.refuses = refuses

    async def set_tenant(self, tenant: int, weight: float) -> None:
        if weight == self.refuses:
            raise ConfigError("no such weight")
        self.weights.append((tenant, weight))


def tenants(**weights: float) -> ConfigFile:
    entries = [{"name": name, "weight": weight} for name, weight in weights.items()]
    document: Any = {"version": 1, "models": [{"name": "m", "source": "s"}], "tenants": entries}
    return parse(json.dumps(document))


def change(engine: FakeEngine, old: ConfigFile, new: ConfigFile) -> None:
    async def run() -> None:
        async with open_access(AppOptions(api_keys=("k",), tenants=tenant_options(old))) as access:
            await access.tell(engine)
            engine.weights.clear()
            await apply(new, [TenantsPart(access, engine)])

    asyncio.run(run())


def test_the_engine_hears_the_weights_of_a_reload() -> None:
    engine = FakeEngine()
    change(engine, tenants(a=2, b=3), tenants(a=2, b=4, d=5))
    assert sorted(weight for _, weight in engine.weights) == [2.0, 4.0, 5.0]
    assert len({number for number, _ in engine.weights}) == 3


def test_a_weight_that_is_refused_takes_the_others_back() -> None:
    engine = FakeEngine(refuses=9)
    with pytest.raises(ConfigError, match="no such weight"):
        change(engine, tenants(a=2, b=3), tenants(a=7, b=9))
    first, *rest = (weight for _, weight in engine.weights)
    assert first == 7.0
    assert rest == [2.0, 3.0]


class FakeLedger:
    """Holds limits, until it cannot be reached."""

    def __init__(self) -> None:
        self.tables: list[LimitTable] = []
        self.fails = 0

    async def prepare_limits(self, limits: LimitTable) -> Callable[[], None]:
        if self.fails:
            self.fails -= 1
            raise LedgerUnavailableError("no ledger")
        return lambda: self.tables.append(limits)


def limited(rpm: int) -> ConfigFile:
    document: Any = {"version": 1, "models": [{"name": "m", "source": "s"}]}
    document["tenants"] = [{"name": "acme", "limits": {"rpm_limit": rpm}}]
    return parse(json.dumps(document))


def test_a_reload_exchanges_all_limits_or_none() -> None:
    ledger, government = FakeLedger(), Government(decider_of(None, ()))
    part = LimitsPart(government, cast(Ledger, ledger))
    asyncio.run(apply(limited(2), [part]))
    second = government.limiter
    assert second is not None
    assert ledger.tables == [second.table]
    assert second.table[Scope(tenant="acme")].requests_per_minute == 2
    ledger.fails = 1
    with pytest.raises(LedgerUnavailableError):
        asyncio.run(apply(limited(3), [part]))
    assert government.limiter is second
    assert ledger.tables[-1] is second.table


async def test_nobody_is_served_by_a_part_of_a_reload(state_url: str) -> None:
    """Neither a call of a tenant that came and is not counted yet, nor one by keys of before under limits of now."""
    async with await open_store(state_url) as store:
        keys = {name: (await create_key(store, name)).text for name in ("acme", "new")}
    old = limited(1)
    both = [{"name": name, "limits": {"rpm_limit": 2}} for name in ("acme", "new")]
    new = parse(json.dumps({"version": 1, "models": [{"name": "m", "source": "s"}], "tenants": both}))
    ledger = ProcessLedger(LimitTable({}))
    government = Government(decider_of(None, ()))
    seen: list[tuple[set[str], dict[str, int | None]]] = []

    class SlowEngine:
        """During whose answers others call."""

        async def set_tenant(self, tenant: int, weight: float) -> None:
            await asyncio.sleep(0)
            look()

    def look() -> None:
        limiter = government.limiter
        assert limiter is not None
        served = {name for name, key in keys.items() if access.find("/v1/models", f"Bearer {key}")}
        limits = {scope.tenant: limits.requests_per_minute for scope, limits in limiter.table.items()}
        seen.append((served, limits))

    async with open_access(AppOptions(state=state_url, tenants=tenant_options(old))) as access:
        parts: list[Part] = [TenantsPart(access, SlowEngine()), LimitsPart(government, ledger)]
        await apply(old, parts[1:])
        await apply(new, parts)
        look()
    *during, after = seen
    assert during == [({"acme"}, {"acme": 1})] * 2
    assert after == ({"acme", "new"}, {"acme": 2, "new": 2})


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
