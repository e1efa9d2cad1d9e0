"""Who is let in: keys from a state, tokens of an issuer, one answer for everybody else."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx
import pytest

from airi.errors import AiriError, ConfigError, StateError
from airi.gateway.access import Access, open_access
from airi.gateway.launch import launch
from airi.gateway.options import AppOptions, ServerOptions
from airi.policy.keys import NewKey, create_key, revoke_key, rotate_key
from airi.policy.oidc import OidcOptions
from airi.policy.tenants import TenantOptions
from airi.state import Store, open_store
from airi.transport import GenerateRequest
from tests.policy.issuer import AUDIENCE, TestIssuer, serving

from .conftest import Gateway, StartGateway, wait_until

T = TypeVar("T")
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 3}


def in_store(url: str, work: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        async with await open_store(url) as store:
            return await work(store)

    return asyncio.run(run())


def new_key(url: str, tenant: str, **options: Any) -> NewKey:
    return in_store(url, lambda store: create_key(store, tenant, **options))


@pytest.fixture
def issuer() -> Iterator[TestIssuer]:
    with serving(TestIssuer()) as running:
        yield running


def ask(gateway: Gateway, credential: str | None, **body: Any) -> httpx.Response:
    headers = {} if credential is None else {"authorization": f"Bearer {credential}"}
    return gateway.http.post("/v1/chat/completions", json={**CHAT, **body}, headers=headers)


def seen_by(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> list[GenerateRequest]:
    seen: list[GenerateRequest] = []
    add = gateway.stub._add

    def noted(request: GenerateRequest) -> None:
        seen.append(request)
        add(request)

    monkeypatch.setattr(gateway.stub, "_add", noted)
    return seen


def test_tenants_reach_the_engine_by_number_with_weight_and_priority(
    start_gateway: StartGateway, state_url: str, issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = new_key(state_url, "earlier")
    acme = new_key(state_url, "acme")
    oidc = OidcOptions(issuer=issuer.url, audience=AUDIENCE)
    tenants = (
        TenantOptions(name="batch", priority=-10, weight=0.5),
        TenantOptions(name="acme", priority=3, max_priority=9, weight=3.0, oidc=oidc),
    )
    told: list[tuple[int, float]] = []
    monkeypatch.setattr(
        "airi.transport.EngineClient.set_tenant", lambda _, tenant, weight: _note(told, tenant, weight)
    )
    gateway = start_gateway(app=AppOptions(api_keys=("sk-flag",), state=state_url, tenants=tenants))
    assert told == [(3, 0.5), (2, 3.0)]
    seen = seen_by(gateway, monkeypatch)
    batch = new_key(state_url, "batch")
    for credential, asked, number, priority in (
        (acme.text, 0, 2, 3),
        (acme.text, 6, 2, 8),
        (issuer.token(), -2, 2, 1),
        ("sk-flag", 5, 4, 5),
    ):
        assert ask(gateway, credential, priority=asked).status_code == 200
        assert (seen[-1].tenant, seen[-1].priority) == (number, priority)
    assert ask(gateway, old.text).status_code == 401  # no longer listed
    wait_until(lambda: ask(gateway, batch.text).status_code == 200, "a new key is not accepted")
    assert (seen[-1].tenant, seen[-1].priority) == (3, -8)
    for credential, asked, says in (
        (acme.text, 7, "priority is 7; accepted of tenant acme: -8 to 6, by its max_priority"),
        (issuer.token(), 8, "priority is 8; accepted of tenant acme: -8 to 6, by its max_priority"),
        (batch.text, 1, "priority is 1; accepted of tenant batch: -8 to 0, by its max_priority"),
    ):
        refused = ask(gateway, credential, priority=asked)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"], error["message"]) == (400, "priority", says)


async def _note(told: list[tuple[int, float]], tenant: int, weight: float) -> None:
    told.append((tenant, weight))


def test_a_key_that_the_command_makes_and_revokes_counts_within_seconds(
    start_gateway: StartGateway, state_url: str
) -> None:
    gateway = start_gateway(app=AppOptions(state=state_url))

    def keys(*arguments: str) -> str:
        command = [sys.executable, "-m", "airi", "keys", *arguments, "--store", state_url]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert ask(gateway, None).status_code == 401  # a state without keys lets nobody in
    first = keys("create", "acme")
    wait_until(lambda: ask(gateway, first).status_code == 200, "a new key is not accepted")
    second = keys("rotate", first.split("-")[2])
    wait_until(lambda: ask(gateway, second).status_code == 200, "a successor is not accepted")
    assert ask(gateway, first).status_code == 200  # until it retires
    keys("revoke", first.split("-")[2])
    wait_until(lambda: ask(gateway, first).status_code == 401, "a revoked key is accepted")
    assert ask(gateway, second).status_code == 200


def test_whatever_is_wrong_the_answer_has_the_same_bytes(
    start_gateway: StartGateway, make_state_url: Callable[[str], str], issuer: TestIssuer
) -> None:
    url = make_state_url("sqlite")
    good, revoked, foreign = new_key(url, "acme"), new_key(url, "acme"), new_key(url, "other")
    expired = new_key(url, "acme", lifetime_s=1, now=time.time() - 10)
    retired = new_key(url, "acme")
    in_store(url, lambda store: revoke_key(store, revoked.record.id))
    in_store(url, lambda store: rotate_key(store, retired.record.id, overlap_s=0))
    oidc = OidcOptions(issuer=issuer.url, audience=AUDIENCE)
    gateway = start_gateway(app=AppOptions(state=url, tenants=(TenantOptions(name="acme", oidc=oidc),)))
    assert ask(gateway, good.text).status_code == 200
    assert ask(gateway, issuer.token()).status_code == 200
    token = issuer.token()
    wrong = {
        "nothing": None,
        "revoked": revoked.text,
        "expired": expired.text,
        "retired": retired.text,
        "of a tenant that is not listed": foreign.text,
        "forged": good.text[:-1] + ("a" if good.text[-1] != "a" else "b"),
        "foreign": "sk-airi-" + "a" * 12 + "-" + "b" * 43,
        "token, expired": issuer.token(exp=time.time() - 600),
        "token, forged": token[:-6] + "AAAAAA",
        "token, of another issuer": issuer.token(iss="https://other.example"),
        "token, for another": issuer.token(aud="other"),
        "token, unknown key": issuer.token(header={"kid": "other"}),
        "token, unsigned": "eyJhbGciOiJub25lIn0." + token.split(".")[1] + ".",
    }
    answers = set()
    for why, credential in wrong.items():
        response = ask(gateway, credential)
        assert response.status_code == 401, why
        headers = {k: v for k, v in response.headers.items() if k not in ("x-request-id", "date")}
        answers.add((response.content, str(sorted(headers.items()))))
    assert len(answers) == 1


@pytest.mark.parametrize("opened", [(), ("/metrics",), ("/openapi.json",)])
def test_only_probes_and_what_the_configuration_opens_need_no_key(
    start_gateway: StartGateway, make_state_url: Callable[[str], str], opened: tuple[str, ...]
) -> None:
    options = AppOptions(state=make_state_url("sqlite"), open_pages=opened)
    gateway = start_gateway(app=options)
    paths = {"/health", "/ready", "/version", *opened}
    closed = {
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/models/tiny",
        "/nothing",
        "/",
        "/health/",
        "//health",
    }
    closed |= {"/v1/chat/completions", "/tokenize", "/docs", "/metrics/", "/Health"}
    for path in paths:
        assert gateway.http.get(path).status_code == 200, path
    for path in closed - paths:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
            assert gateway.http.request(method, path).status_code == 401, (method, path)


def test_other_pages_cannot_be_opened() -> None:
    with pytest.raises(ConfigError, match=r"open_pages has '/v1/models'; accepted: /metrics, /openapi\.json"):
        AppOptions(open_pages=("/metrics", "/v1/models"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_without_keys_only_this_machine_is_served(host: str) -> None:
    with pytest.raises(ConfigError, match="which others can reach, and there are no keys") as caught:
        ServerOptions(host=host)
    assert caught.value.field == "host"
    ServerOptions(host=host, app=AppOptions(api_keys=("k",)))
    ServerOptions(host=host, app=AppOptions(state="sqlite:///x"))
    for own in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        ServerOptions(host=own)


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ("sqlite:////nowhere/at/all.db", StateError, "No such file or directory"),
        ("redis://x", ConfigError, "no URL of a database"),
        ("postgresql://airi:rain-on-tin@127.0.0.1:1/airi", StateError, "cannot be opened"),
    ],
)
async def test_a_state_that_cannot_be_used_is_said_before_an_engine_starts(
    state: str, error: type[AiriError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        await launch("ipc:///nowhere/engine", ServerOptions(port=0, app=AppOptions(state=state)))
    assert "rain-on-tin" not in str(caught.value)


async def test_an_access_without_keys_lets_all_in_and_one_with_keys_nobody_else() -> None:
    assert Access().find("/v1/models", None) is not None
    async with open_access(AppOptions(api_keys=("k",))) as access:
        assert access.needs_key
        assert access.find("/v1/models", None) is None
        assert await access.find_late(None) is None
    async with open_access(AppOptions(tenants=(TenantOptions(name="acme"),))) as access:
        assert access.find("/v1/models", None) is None  # tenants without any key yet


async def test_a_reload_is_taken_whole(state_url: str, issuer: TestIssuer) -> None:
    async with await open_store(state_url) as store:
        acme, batch = await create_key(store, "acme"), await create_key(store, "batch")
    options = AppOptions(api_keys=("sk-flag",), state=state_url, tenants=(TenantOptions(name="acme"),))

    def found(access: Access, credential: str) -> tuple[str, int, int] | None:
        principal = access.find("/v1/models", f"Bearer {credential}")
        return None if principal is None else (principal.tenant, principal.number, principal.priority)

    async with open_access(options) as access:
        assert found(access, batch.text) is None
        oidc = OidcOptions(issuer=issuer.url, audience=AUDIENCE)
        before = [("acme", 1, 0), None, ("flag:1", 3, 0)]
        new = [TenantOptions(name="batch", priority=-4), TenantOptions(name="new", oidc=oidc)]
        tenants = await access.prepare(new)
        assert [found(access, text) for text in (acme.text, batch.text, "sk-flag")] == before
        access.use(tenants)
        after = [None, ("batch", 2, -4), ("flag:1", 3, 0)]
        assert [found(access, text) for text in (acme.text, batch.text, "sk-flag")] == after
        token = f"Bearer {issuer.token()}"
        assert access.find("/", token) is None
        late = await access.find_late(token)
        assert late is not None
        assert (late.tenant, late.number) == ("new", 4)
        same = [TenantOptions(name=name, oidc=oidc) for name in ("acme", "new")]
        for refused in (same, [TenantOptions(name="acme"), TenantOptions(name="acme", weight=2.0)]):
            with pytest.raises(ConfigError):
                await access.prepare(refused)
            assert [found(access, text) for text in (acme.text, batch.text, "sk-flag")] == after
            assert access.find("/", token) is not None
        told: list[tuple[int, float]] = []

        class Engine:
            async def set_tenant(self, tenant: int, weight: float) -> None:
                told.append((tenant, weight))

        await access.tell(Engine())
        assert told == [(2, 1.0), (4, 1.0)]
        access.use(await access.prepare(options.tenants))
        assert [found(access, text) for text in (acme.text, batch.text, "sk-flag")] == before
        assert access.find("/", token) is None


async def test_numbers_stay_through_reloads_without_a_state() -> None:
    async with open_access(AppOptions(api_keys=("k",), tenants=(TenantOptions(name="a"),))) as access:
        access.use(await access.prepare([TenantOptions(name="b"), TenantOptions(name="a", weight=2.0)]))
        told: list[tuple[int, float]] = []

        class Engine:
            async def set_tenant(self, tenant: int, weight: float) -> None:
                told.append((tenant, weight))

        await access.tell(Engine())
        assert told == [(3, 1.0), (2, 2.0)]


async def test_a_server_without_keys_takes_no_tenants_later() -> None:
    async with open_access(AppOptions()) as access:
        access.use(await access.prepare([]))
        with pytest.raises(ConfigError, match="started without keys"):
            await access.prepare([TenantOptions(name="a")])
        assert not access.needs_key


def answers_to(gateway: Gateway, credentials: list[str]) -> list[str]:
    """All that comes back for each of them, sent to several routes in several ways."""
    said = []
    for credential in credentials:
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/completions", {"model": "nobody"}),
            ("/nothing", {}),
        ):
            for scheme in ("Bearer", "Basic", "Token"):
                headers = {"authorization": f"{scheme} {credential}"}
                response = gateway.http.post(path, json=body, headers=headers)
                said.append(response.text + str(response.headers))
    return said


def answers_to_slips(gateway: Gateway, key: str, slips: list[str]) -> list[str]:
    """All that comes back where these are sent as the request's id."""
    said = []
    for slip in slips:
        headers = {"authorization": f"Bearer {key}", "x-request-id": slip}
        response = gateway.http.post("/v1/chat/completions", json=CHAT, headers=headers)
        said.append(response.text + str(response.headers))
    return said


def test_no_log_answer_metric_or_repr_holds_a_key_or_a_token(
    start_gateway: StartGateway,
    make_state_url: Callable[[str], str],
    issuer: TestIssuer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = make_state_url("sqlite")
    key, revoked = new_key(url, "acme"), new_key(url, "acme")
    in_store(url, lambda store: revoke_key(store, revoked.record.id))
    opened: list[Access] = []
    made = Access.__init__

    def noted(self: Access, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        opened.append(self)

    monkeypatch.setattr(Access, "__init__", noted)
    oidc = OidcOptions(issuer=issuer.url, audience=AUDIENCE)
    options = AppOptions(
        api_keys=("sk-flag-" + "f" * 30,), state=url, tenants=(TenantOptions(name="acme", oidc=oidc),)
    )
    gateway = start_gateway(app=options)
    token, forged = issuer.token(email="ada@acme.example"), issuer.token()[:-6] + "AAAAAA"
    said = answers_to(
        gateway, [key.text, revoked.text, "sk-flag-" + "f" * 30, token, forged, "sk-" + "u" * 40]
    )
    monkeypatch.setattr("airi.gateway.openai.chat.check_prompt", lambda *_, **__: 1 / 0)
    said += [ask(gateway, text).text for text in (key.text, token)]
    said += answers_to_slips(gateway, key.text, [key.text, f"id:{revoked.text}", token])
    said.append(gateway.http.get("/metrics", headers={"authorization": f"Bearer {key.text}"}).text)
    (access,) = opened
    keys = access._keys
    assert keys is not None
    said += [repr(access), *(repr(vars(part)) for part in (access, keys, keys.ring, keys.verifier))]
    said += map(repr, [options.tenants, *(access.find("/", f"Bearer {each}") for each in (token, key.text))])
    said += map(logging.Formatter("%(name)s %(message)s").format, caplog.records)  # with tracebacks
    said += capfd.readouterr()
    everything = "\n".join(said)
    assert "ZeroDivisionError" in everything
    assert "invalid_api_key" in everything
    assert f"id=id:{revoked.record.id} tenant=acme" in everything
    secrets = [text.rsplit("-", 1)[1] for text in (key.text, revoked.text)]
    secrets += ["f" * 30, "u" * 40, *(part for text in (token, forged) for part in text.split(".")[1:])]
    for secret in (*secrets, "ada@acme.example", "somebody"):
        assert secret not in everything


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:3000", 200),
        ("http://[::1]", 200),
        ("https://app.example", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://127.0.0.1@evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_machines_spend_nothing_where_no_key_is_asked_for(
    start_gateway: StartGateway, origin: str | None, status: int
) -> None:
    gateway = start_gateway(app=AppOptions(cors_origins=("https://app.example",)))
    # As a page may send it unasked: browsers look at no answer to a preflight first.
    headers = {"content-type": "text/plain"} | ({} if origin is None else {"origin": origin})
    answer = gateway.http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "foreign_origin"
