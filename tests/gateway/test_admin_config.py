"""What operators see and change of what is served: config, tenants, models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from airi.config import load
from airi.config.options import tenant_options
from airi.config.reload import Reloader
from airi.gateway.access import open_access
from airi.gateway.app import create_app
from airi.gateway.governing import PoliciesPart, open_government
from airi.gateway.metrics import Metrics
from airi.gateway.models import ModelRegistry
from airi.gateway.options import AppOptions
from airi.gateway.reloading import TenantsPart

from .admin import BASE, bearer, key_of
from .conftest import StartGateway

CONFIG = """\
version: 1
server: {state: 'STATE', shared_counters: "${SOME_REDIS:-}"}
models: [{name: m, source: "s", price: {input_per_1m: 1, output_per_1m: 1}}]
tenants:
  - {name: ops, groups: [operators], auth: {key_prefix: sk-live-abcdefgh12345}}
  - name: acme
    weight: 2
    region: eu
    limits: {rpm_limit: 60, max_budget: 2.5, models: {m: {tpm_limit: 100}}}
"""


class FakeEngine:
    """Hears weights."""

    async def set_tenant(self, tenant: int, weight: float) -> None:
        pass


@asynccontextmanager
async def configured(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """A client of a server with this config, and what an operator sends."""
    monkeypatch.setenv("SOME_REDIS", "")
    file = load(path)
    options = AppOptions(state=file.config.server.state, tenants=tenant_options(file))
    ops = await key_of(file.config.server.state, "ops")
    async with open_access(options) as access, open_government(file) as (government, _):
        reloader = Reloader(file, [TenantsPart(access, FakeEngine()), PoliciesPart(government)])
        app = create_app(
            ModelRegistry([]), Metrics("1"), options, access=access, government=government, reloader=reloader
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
            yield http, bearer(ops)


@pytest.fixture
def path(tmp_path: Path, make_state_url: Callable[[str], str]) -> Path:
    path = tmp_path / "airi.yaml"
    path.write_text(CONFIG.replace("STATE", make_state_url("sqlite")))
    return path


async def test_the_config_in_force_is_shown_without_secrets(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with configured(path, monkeypatch) as (http, ops):
        shown = (await http.get("/admin/config", headers=ops)).json()
    assert shown["path"] == str(path)
    assert shown["digest"] == load(path).digest
    assert shown["last_refusal"] is None
    assert shown["config"]["server"]["shared_counters"] == "${SOME_REDIS:-}"
    assert shown["config"]["tenants"][0]["auth"]["key_prefix"] == "***"
    assert shown["config"]["tenants"][1]["weight"] == 2


async def test_a_reload_is_applied_whole_or_refused_with_a_line_for_each_mistake(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = path.read_text()
    async with configured(path, monkeypatch) as (http, ops):

        async def reload() -> httpx.Response:
            return await http.post("/admin/reload", json={}, headers=ops)

        before = (await http.get("/admin/config", headers=ops)).json()
        path.write_text(text.replace("weight: 2", "weight: 5"))
        applied = (await reload()).json()
        assert applied["changes"] == ["tenants.acme.weight"]
        assert applied["digest"] != before["digest"]
        path.write_text(text.replace("weight: 2", "weight: -1").replace("region: eu", "regoin: eu"))
        refused = await reload()
        assert refused.status_code == 409
        error = refused.json()["error"]
        first, second = error["message"].splitlines()
        assert error["code"] == "config_refused"
        assert first.startswith(f"{path}:7: tenants[1].weight is -1; accepted: ")
        assert second.startswith(f"{path}:8: tenants[1].regoin is an unknown key; the nearest is region")
        after = (await http.get("/admin/config", headers=ops)).json()
        assert (after["digest"], after["config"]["tenants"][1]["weight"]) == (applied["digest"], 5)
        assert after["last_refusal"]["mistakes"] == [first, second]


async def test_tenants_are_shown_with_what_their_limits_have_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with configured(path, monkeypatch) as (http, ops):
        plain, acme = (await http.get("/admin/tenants", headers=ops)).json()["data"]
    assert (plain["name"], plain["groups"], plain["limits"]) == ("ops", ["operators"], [])
    assert (acme["weight"], acme["region"], acme["priority"], acme["max_priority"]) == (2, "eu", 0, 0)
    limits = {(one["name"], one["model"]): (one["limit"], one["remaining"]) for one in acme["limits"]}
    assert limits == {
        ("rpm_limit", None): (60, 60),
        ("max_budget", None): (2.5, 2.5),
        ("tpm_limit", "m"): (100, 100),
    }


# -- models ---------------------------------------------------------------------------------------


def test_a_model_sleeps_and_wakes(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    for verb, state in (("sleep", "asleep"), ("wake", "awake")):
        response = gateway.http.post(f"/admin/models/tiny-alias/{verb}", json={})
        assert response.json() == {"id": "tiny", "state": state}
        assert gateway.stub.asleep is (verb == "sleep")
