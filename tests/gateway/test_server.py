"""The server as a whole: keys, ids, logs, CORS, TLS."""

from __future__ import annotations

import logging
import re
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import openai
import pytest

from airi.errors import ConfigError
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.launch import launch
from airi.gateway.lifecycle import bind
from airi.gateway.metrics import Metrics
from airi.gateway.models import serve_models
from airi.gateway.options import AppOptions, ServerOptions
from airi.gateway.server import _config
from airi.policy.audit import AuditLog
from airi.text import Tokenizer
from airi.transport import EngineClient, GenerateRequest
from airi.transport.stub import StubOptions

from .conftest import Gateway, StartGateway, events, gateway_thread, stub_engine, wait_until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 3}
TEXT = {"model": "tiny", "prompt": "What?", "max_tokens": 3}


def test_without_the_key_only_probes_are_answered(start_gateway: StartGateway) -> None:
    gateway = start_gateway(app=AppOptions(api_keys=("sk-one", "sk-two")))
    for path in ("/health", "/ready", "/version"):
        assert gateway.http.get(path).status_code == 200
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        response = gateway.http.get(path)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    for header in ("Bearer wrong", "Bearer", "Basic sk-one", "sk-one", "Bearer sk-one2", "Bearer \u00e9"):
        sent = {b"authorization": header.encode("latin-1")}
        assert gateway.http.post("/v1/chat/completions", json=CHAT, headers=sent).status_code == 401
    for key in ("sk-one", "sk-two"):
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
            assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-three", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_each_key_is_a_tenant_of_its_own(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start_gateway(app=AppOptions(api_keys=("sk-one", "sk-two")))
    seen = requests_of(gateway, monkeypatch)
    for key in ("sk-one", "sk-two", "sk-one"):
        headers = {"authorization": f"Bearer {key}"}
        gateway.http.post("/v1/chat/completions", json=CHAT, headers=headers)
        gateway.http.post("/v1/completions", json=TEXT, headers=headers)
    assert [request.tenant for request in seen] == [1, 1, 2, 2, 1, 1]


def test_without_keys_all_are_one_tenant(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = requests_of(gateway, monkeypatch)
    gateway.http.post("/v1/chat/completions", json=CHAT)
    assert [request.tenant for request in seen] == [0]


def test_priority_and_salt_reach_the_engine(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = requests_of(gateway, monkeypatch)
    for path, body in (("chat/completions", CHAT), ("completions", TEXT)):
        for salt in ("über", None):
            sent = {**body, "priority": 3, "cache_salt": salt}
            assert gateway.http.post(f"/v1/{path}", json=sent).status_code == 200
    assert [request.cache_salt for request in seen] == ["über".encode(), None] * 2
    assert {request.priority for request in seen} == {3}


def requests_of(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> list[GenerateRequest]:
    """What the gateway's engine is sent from now on."""
    seen: list[GenerateRequest] = []
    add = gateway.stub._add

    def noted(request: GenerateRequest) -> None:
        seen.append(request)
        add(request)

    monkeypatch.setattr(gateway.stub, "_add", noted)
    return seen


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_key_is_refused_and_opens_nothing(key: str) -> None:
    with pytest.raises(ConfigError, match="api_key is empty"):
        AppOptions(api_keys=("sk-one", key))


def test_a_request_id_is_kept_or_made(gateway: Gateway) -> None:
    given = gateway.http.get("/health", headers={"x-request-id": "trace-42:a/b"})
    assert given.headers["x-request-id"] == "trace-42:a/b"
    for bad in ("with space", "x" * 200, 'quote"', "\u00e9"):
        response = gateway.http.get("/health", headers={b"x-request-id": bad.encode("latin-1")})
        assert re.fullmatch(r"req-[0-9a-f]{24}", response.headers["x-request-id"])
    refused = gateway.http.post("/v1/chat/completions", content=b"{", headers={"x-request-id": "mine"})
    assert refused.headers["x-request-id"] == "mine"
    stream = gateway.http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert stream.headers["x-request-id"].startswith("req-")


def test_the_access_log_has_sizes_and_ids_and_no_content(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        body = {**CHAT, "messages": [{"role": "user", "content": "swordfish"}]}
        gateway.http.post("/v1/chat/completions?key=swordfish", json=body, headers={"x-request-id": "r1"})
        gateway.http.post("/v1/chat/completions", json={**body, "temperature": "swordfish"})
        gateway.http.get("/with%0Abreaks%20and%00more")
        wait = [r for r in caplog.records if r.name == "airi.access"]
        while len(wait) < 3:
            time.sleep(0.01)
            wait = [r for r in caplog.records if r.name == "airi.access"]
    lines = [r.getMessage() for r in wait]
    assert re.fullmatch(
        r"127\.0\.0\.1 POST /v1/chat/completions 200 \d+\.\dms id=r1 tenant=anyone "
        r"prompt_tokens=\d+ completion_tokens=3 device_ms=0\.0",
        lines[0],
    )
    assert " 400 " in lines[1]
    assert "\n" not in lines[2]
    # Loggers of this process's clients show the URL they asked for; what counts is the server's.
    assert not any("swordfish" in r.getMessage() for r in caplog.records if r.name.startswith("airi"))


@pytest.mark.parametrize("key", ["hunter2 and more", "k+1", "sk-free_form.key"])
def test_keys_that_were_given_with_flags_are_shown_nowhere(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, tmp_path: Path, key: str
) -> None:
    log = tmp_path / "audit.jsonl"

    async def govern() -> Government:
        return Government(decider_of(None, ("tiny",)), audit=AuditLog(log))

    gateway = start_gateway(app=AppOptions(api_keys=("another", key)), govern=govern)
    bearer = {"authorization": f"Bearer {key}"}
    with caplog.at_level(logging.DEBUG):
        answers = [
            gateway.http.get("/health", headers={"x-request-id": f"a/{key}"}),
            gateway.http.post("/v1/chat/completions", json=CHAT | {"model": key}, headers=bearer),
            gateway.http.get(f"/v1/models/{quote(key)}", headers=bearer),
            gateway.http.request("DELETE", f"/admin/keys/{quote(key)}", headers=bearer),
        ]
        wait_until(lambda: caplog.text.count("device_ms=") == 4, "calls are not logged")
    assert [answer.status_code for answer in answers] == [200, 404, 404, 403]
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("airi")]
    assert [line for line in lines if "/flag:2 " in line]
    told = [text for answer in answers for text in (answer.headers["x-request-id"], answer.text)]
    assert not [text for text in [*told, *lines, log.read_text()] if key in text]


def test_texts_that_are_no_keys_are_shown_as_they_are(start_gateway: StartGateway) -> None:
    gateway = start_gateway(app=AppOptions(api_keys=("k",)))
    answer = gateway.http.get("/health", headers={"x-request-id": "track-7"})
    assert answer.headers["x-request-id"] == "track-7"


def test_an_unexpected_error_is_a_500_with_the_id_and_without_the_content(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "".join(reversed("hsifdrows"))  # the traceback may show this line

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError(secret)

    monkeypatch.setattr("airi.gateway.openai.chat.check_prompt", broken)
    response = gateway.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "r500"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "r500" in response.json()["error"]["message"]
    assert secret not in response.text + caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_an_unexpected_error_in_a_stream_is_in_the_log_with_its_traceback(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "".join(reversed("hsifdrows"))  # the traceback may show this line

    def broken(*_: object) -> bytes:
        raise ZeroDivisionError(secret)

    monkeypatch.setattr("airi.gateway.openai.chat.ChatAnswer.closing", broken)
    body = {**CHAT, "stream": True, "max_tokens": 100}
    response = gateway.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "r501"})
    assert "r501" in events(response.text)[-1]["error"]["message"]
    assert "in broken" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert secret not in response.text + caplog.text


def test_scripts_of_allowed_origins_may_call(start_gateway: StartGateway) -> None:
    gateway = start_gateway(app=AppOptions(cors_origins=("https://app.example",), api_keys=("k",)))
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    preflight = gateway.http.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    refused = gateway.http.post("/v1/chat/completions", json=CHAT, headers={"origin": "https://app.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example", (
        "scripts can read the error"
    )
    exposed = refused.headers["access-control-expose-headers"]
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed.split(", "))
    other = gateway.http.get("/health", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_without_the_option_there_is_no_cors(gateway: Gateway) -> None:
    response = gateway.http.get("/health", headers={"origin": "https://app.example"})
    assert "access-control-allow-origin" not in response.headers


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl (Debian package openssl)")
    return cert, key


def test_tls_files_make_it_https(certificate: tuple[Path, Path], model_folder: Path, tmp_path: Path) -> None:
    options = ServerOptions(port=0, tls_cert=certificate[0], tls_key=certificate[1])
    stub = StubOptions(endpoint=f"ipc://{tmp_path}/e", model_path=str(model_folder), name="tiny")
    with stub_engine(stub), gateway_thread(stub.endpoint, options) as (listening, _):
        assert listening.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=certificate[0])
        body = {**CHAT, "stream": True}
        response = httpx.post(f"{listening.url}/v1/chat/completions", json=body, verify=context)
        assert len(events(response.text)) >= 3


def test_another_chat_template_replaces_the_models_own(
    model_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    options = ServerOptions(port=0, chat_template=template)
    stub = StubOptions(endpoint=f"ipc://{tmp_path}/e", model_path=str(model_folder), name="tiny")
    with stub_engine(stub), gateway_thread(stub.endpoint, options) as (listening, _):
        done = httpx.post(f"{listening.url}/v1/chat/completions", json=CHAT).json()
    assert done["usage"]["prompt_tokens"] == len(tokenizer.encode("[What?]"))


async def test_a_broken_chat_template_ends_the_start(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    stub = StubOptions(endpoint=f"ipc://{tmp_path}/e", model_path=str(folder), name="tiny")
    with stub_engine(stub):
        async with await EngineClient.connect(stub.endpoint, timeout_s=10) as client:
            with pytest.raises(ConfigError, match="chat template 'default': line 1"):
                serve_models(client, Metrics("1"))


def test_a_template_given_instead_of_a_broken_one_is_all_that_counts(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    stub = StubOptions(endpoint=f"ipc://{tmp_path}/e", model_path=str(folder), name="tiny")
    options = ServerOptions(port=0, chat_template=template)
    with stub_engine(stub), gateway_thread(stub.endpoint, options) as (listening, _):
        assert httpx.post(f"{listening.url}/v1/chat/completions", json=CHAT).status_code == 200


async def test_a_broken_template_that_only_requests_with_tools_use_ends_the_start_too(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{% if %}")
    stub = StubOptions(endpoint=f"ipc://{tmp_path}/e", model_path=str(folder), name="tiny")
    with stub_engine(stub):
        async with await EngineClient.connect(stub.endpoint, timeout_s=10) as client:
            with pytest.raises(ConfigError, match="chat template 'tool_use': line 1"):
                serve_models(client, Metrics("1"))


async def test_a_chat_template_that_cannot_be_read_is_named_before_the_engine_starts(tmp_path: Path) -> None:
    options = ServerOptions(port=0, chat_template=tmp_path / "none.jinja")
    with pytest.raises(ConfigError, match=r"none\.jinja: cannot be read: No such file"):
        await launch(f"ipc://{tmp_path}/nobody", options)


def test_tls_files_that_do_not_fit_are_named(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    with pytest.raises(ConfigError, match="tls_key"):
        ServerOptions(tls_cert=cert)
    for broken in ((cert, cert), (key, key), (tmp_path / "none", key)):
        with pytest.raises(ConfigError, match="tls_cert"):
            _config(object(), ServerOptions(tls_cert=broken[0], tls_key=broken[1]))


def test_a_taken_port_and_an_unknown_host_are_named() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {port}"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="host"):
        bind("no such host", 0)
    for host in ("foo..bar", "." * 300):
        with pytest.raises(ConfigError, match="not a host name"):
            bind(host, 0)
    with pytest.raises(ConfigError, match="port"):
        ServerOptions(port=70_000)
