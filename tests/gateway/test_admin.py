"""The admin API: what operators see and change, and who is kept out of it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airi.errors import StateError
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.options import AppOptions
from airi.policy.audit import AuditLog
from airi.policy.keys import NewKey, create_key, list_keys
from airi.state import open_store

from .admin import BASE, TENANTS, bearer, key_of, server

# -- who may --------------------------------------------------------------------------------------


async def test_by_the_policies_built_in_only_operators_administer(state_url: str) -> None:
    ops, acme = await key_of(state_url, "ops"), await key_of(state_url, "acme")
    async with server(AppOptions(state=state_url, tenants=TENANTS)) as http:
        for path in ("/admin/keys", "/admin/tenants"):
            assert (await http.get(path, headers=bearer(ops))).status_code == 200
            refused = await http.get(path, headers=bearer(acme))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
            assert (await http.get(path)).status_code == 401


async def test_keys_of_flags_administer_nothing() -> None:
    async with server(AppOptions(api_keys=("k",))) as http:
        for path in ("/admin/config", "/admin/keys", "/admin/tenants"):
            assert (await http.get(path, headers=bearer("k"))).status_code == 403


async def test_without_keys_whoever_is_on_this_machine_administers() -> None:
    async with server(AppOptions()) as http:
        assert (await http.get("/admin/tenants")).json() == {"object": "list", "data": []}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "https://evil.example"}, "foreign_origin"),
        ({"origin": "null"}, "foreign_origin"),
        ({"origin": "http://127.0.0.1:9000"}, "foreign_origin"),
        ({"host": "evil.example:8000"}, "foreign_host"),
        ({"host": "evil.example:8000", "origin": "http://evil.example:8000"}, "foreign_host"),
        ({"host": "127.0.0.1.evil.example"}, "foreign_host"),
        ({"host": "[::1].evil.example"}, "foreign_host"),
        ({"host": ""}, "foreign_host"),
        ({"origin": BASE}, None),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, None),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, None),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_pages_of_others_do_not_administer_a_server_without_keys(
    method: str, headers: dict[str, str], code: str | None
) -> None:
    async with server(AppOptions(cors_origins=("*",))) as http:
        response = await http.request(
            method, "/admin/keys", headers=headers, json={} if method == "POST" else None
        )
    if code is None:
        assert response.status_code in (400, 409)
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (403, code)


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"]
)
async def test_a_body_must_be_said_to_be_json(content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    async with server(AppOptions()) as http:
        response = await http.post("/admin/reload", content=b"{}", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_bodies_are_small(state_url: str) -> None:
    ops = await key_of(state_url, "ops")
    async with server(AppOptions(state=state_url, tenants=TENANTS)) as http:
        response = await http.post("/admin/keys", json={"tenant": "x" * 70_000}, headers=bearer(ops))
    assert response.status_code == 413


async def test_the_audit_log_names_the_call_and_no_log_has_a_key(
    state_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ops, acme = await key_of(state_url, "ops"), await key_of(state_url, "acme")
    audit = AuditLog(tmp_path / "audit.jsonl")
    government = Government(decider_of(None, ()), audit=audit)
    async with server(AppOptions(state=state_url, tenants=TENANTS), government=government) as http:
        made = await http.post("/admin/keys", json={"tenant": "acme"}, headers=bearer(ops))
        # The whole key in place of its id is a slip that people make.
        ended = await http.request("DELETE", f"/admin/keys/{acme}", headers=bearer(ops))
        await http.get(f"/admin/config/{acme}", headers=bearer(ops))
        await http.request("DELETE", f"/admin/keys/{'x' * 60_000}", headers=bearer(ops))
    assert (made.status_code, ended.status_code, ended.json()["state"]) == (200, 200, "revoked")
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line["tenant"], line["call"]) for line in lines] == [
        ("admin", "ops", "POST /admin/keys"),
        ("admin", "ops", f"DELETE /admin/keys/{acme.split('-')[2]}"),
        ("admin", "ops", f"DELETE /admin/keys/{'x' * 188}"),
    ]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("airi")]
    assert any(acme.split("-")[2] in line for line in ours)
    said = "\n".join([*ours, (tmp_path / "audit.jsonl").read_text()])
    for key in (ops, acme, made.json()["key"]):
        assert key.rsplit("-", 1)[1] not in said


# -- keys -----------------------------------------------------------------------------------------


async def test_a_key_is_made_shown_once_rotated_and_ended_and_counts_at_once(state_url: str) -> None:
    ops = await key_of(state_url, "ops")
    async with server(AppOptions(state=state_url, tenants=TENANTS)) as http:

        async def call(method: str, path: str, **body: Any) -> Any:
            sent = body if method == "POST" else None
            response = await http.request(method, path, headers=bearer(ops), json=sent)
            assert response.status_code == 200, response.text
            assert response.headers["cache-control"] == "no-store"
            return response.json()

        async def status(key: str) -> int:
            return (await http.get("/v1/models", headers=bearer(key))).status_code

        first = await call("POST", "/admin/keys", tenant="acme", expires="90d")
        assert first["key"].startswith(f"sk-acme-{first['id']}-")
        assert first["state"] == "active"
        assert first["expires"] > first["created"]
        assert await status(first["key"]) == 200
        second = await call("POST", f"/admin/keys/{first['id']}/rotate", overlap="1h")
        assert (await status(first["key"]), await status(second["key"])) == (200, 200)
        third = await call("POST", f"/admin/keys/{second['id']}/rotate", overlap="0s", expires="1h")
        assert (await status(second["key"]), await status(third["key"])) == (401, 200)
        ended = await call("DELETE", f"/admin/keys/{third['id']}")
        assert ended["state"] == "revoked"
        assert await status(third["key"]) == 401
        listed = await call("GET", "/admin/keys?tenant=acme")
        assert [(key["id"], key["state"]) for key in listed["data"]] == sorted(
            [(first["id"], "rotated"), (second["id"], "retired"), (third["id"], "revoked")],
            key=lambda found: [key["id"] for key in listed["data"]].index(found[0]),
        )
        assert len((await call("GET", "/admin/keys"))["data"]) == 4
        for key in (first, second, third):
            assert key["key"].rsplit("-", 1)[1] not in json.dumps(listed)


async def test_a_key_that_one_gateway_makes_and_ends_counts_in_the_others(state_url: str) -> None:
    ops = await key_of(state_url, "ops")
    options = AppOptions(state=state_url, tenants=TENANTS)
    async with server(options) as here, server(options) as there:

        async def becomes(status: int, key: str) -> None:
            async with asyncio.timeout(60):
                while (await there.get("/v1/models", headers=bearer(key))).status_code != status:
                    await asyncio.sleep(0.05)

        made = (await here.post("/admin/keys", json={"tenant": "acme"}, headers=bearer(ops))).json()
        await becomes(200, made["key"])
        await here.delete(f"/admin/keys/{made['id']}", headers=bearer(ops))
        await becomes(401, made["key"])


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/admin/keys", b"{", 400, "the body is not valid JSON"),
        ("/admin/keys", b"{}", 400, "tenant: is missing"),
        ("/admin/keys", b'{"tenant": 5}', 400, "tenant: expected `str`, got `int`"),
        (
            "/admin/keys",
            b'{"tenant": "acme", "owner": "x"}',
            400,
            "owner: is an unknown field; accepted: tenant, expires",
        ),
        (
            "/admin/keys",
            b'{"tenant": "nobody"}',
            400,
            "tenant is 'nobody', which is not served; accepted: one of: ops",
        ),
        (
            "/admin/keys",
            b'{"tenant": "acme", "expires": "soon"}',
            400,
            "expires is 'soon'; give a whole number",
        ),
        ("/admin/keys", b'{"tenant": "acme", "expires": "0d"}', 400, "expires is 0 s from now"),
        ("/admin/keys/" + "a" * 12 + "/rotate", b"", 404, "key aaaaaaaaaaaa is not known"),
        ("/admin/keys/" + "a" * 12 + "/rotate", b'{"overlap": 5}', 400, "overlap: expected `str`"),
        ("/admin/keys/nonsense/rotate", b"{}", 400, "key is named by what is no id"),
        ("/admin/reload", b'{"file": "x"}', 400, "file: is an unknown field; accepted: no fields"),
        ("/admin/reload", b"", 409, "this server was started without a config"),
        ("/admin/models/nobody/sleep", b"{}", 404, "'nobody' is not served here"),
    ],
)
async def test_a_wrong_call_is_one_clear_line_and_changes_nothing(
    make_state_url: Callable[[str], str], path: str, body: bytes, status: int, says: str
) -> None:
    url = make_state_url("sqlite")
    ops = await key_of(url, "ops")
    async with server(AppOptions(state=url, tenants=TENANTS)) as http:
        headers = {**bearer(ops), "content-type": "application/json"}
        response = await http.post(path, content=body, headers=headers)
    assert response.status_code == status
    message = response.json()["error"]["message"]
    assert says in message.replace("Object", "object")
    assert "\n" not in message
    async with await open_store(url) as store:
        assert len(await list_keys(store)) == 1


async def test_a_key_is_in_no_log_when_its_answer_fails(
    make_state_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_state_url("sqlite")
    ops = await key_of(url, "ops")
    made: list[NewKey] = []

    async def noted(*arguments: Any, **options: Any) -> NewKey:
        made.append(await create_key(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("airi.gateway.admin.keys.create_key", noted)
    monkeypatch.setattr("airi.gateway.admin.keys.described", lambda *_: dict[str, str]()[made[0].text])
    async with server(AppOptions(state=url, tenants=TENANTS)) as http:
        response = await http.post("/admin/keys", json={"tenant": "acme"}, headers=bearer(ops))
    assert response.status_code == 500
    assert "KeyError" in caplog.text
    said = "\n".join(map(logging.Formatter("%(message)s").format, caplog.records)) + response.text
    assert made[0].text.rsplit("-", 1)[1] not in said


async def test_without_a_state_there_are_no_keys_to_make() -> None:
    async with server(AppOptions()) as http:
        response = await http.post("/admin/keys", json={"tenant": "acme"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "no_state")


async def test_a_state_that_does_not_answer_is_a_503_without_its_url(
    make_state_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_state_url("sqlite")
    ops = await key_of(url, "ops")

    async def fails(*_: Any, **__: Any) -> Any:
        raise StateError("state postgresql://u@host/db: no server answers")

    async with server(AppOptions(state=url, tenants=TENANTS)) as http:
        monkeypatch.setattr("airi.state.sqlite.SqliteStore.add_key", fails)
        response = await http.post("/admin/keys", json={"tenant": "acme"}, headers=bearer(ops))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "state_error")
    assert "host" not in response.text
