"""`airi check`, `schema`, `lock`, `import`, and `serve` of a config."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cedarpy import Schema, validate_policies

from airi import builtin
from airi.cli import serve as command
from airi.config import load
from airi.engine import EngineOptions
from airi.gateway.options import ServerOptions
from airi.policy.schema import ACTIONS
from tests.logs import logging_as_before

Airi = Callable[..., Any]
EXAMPLE = Path(__file__).parents[2] / "examples/airi.yaml"
MINIMAL = "version: 1\nmodels:\n  - {name: demo, source: airi-demo}\n"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    with logging_as_before():
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A minimal config."""
    path = tmp_path / "airi.yaml"
    path.write_text(MINIMAL)
    return path


def test_check_says_what_a_config_holds(airi: Airi, file: Path) -> None:
    result = airi("check", str(file))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{file}: 1 model\n  fits ")


def test_check_says_every_mistake_in_a_line_of_its_own(airi: Airi, file: Path) -> None:
    file.write_text(MINIMAL + "server: {port: x}\ntenant: []\n")
    result = airi("check", str(file))
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines() == [
        f"{file}:4: server.port is 'x'; accepted: a whole number from 0 to 65535",
        f"{file}:5: tenant is an unknown key; the nearest is tenants; accepted: collections, content, "
        "engine, models, observability, policies, releases, rollouts, routes, server, tenants, version",
    ]


@pytest.mark.parametrize("name", ["check", "lock", "serve"])
def test_a_config_that_is_not_there_is_one_line(airi: Airi, tmp_path: Path, name: str) -> None:
    path = tmp_path / "no.yaml"
    result = airi(name, str(path))
    assert (result.code, result.err) == (2, f"airi: {path} cannot be read: No such file or directory\n")


def test_the_config_of_the_working_directory_is_meant(
    airi: Airi, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert airi("check").out.startswith("airi.yaml: 1 model\n")


def test_schema_is_json(airi: Airi) -> None:
    schema = json.loads(airi("schema").out)
    assert schema["required"] == ["version", "models"]


def test_schema_of_policies_is_cedars_and_fits_the_example(airi: Airi) -> None:
    text = airi("schema", "--cedar").out
    printed = Schema.from_str(text)
    policies = load(EXAMPLE, {}).policies
    assert policies is not None
    assert validate_policies(policies, printed).validation_passed
    assert not validate_policies(policies.replace("max_tokens", "most_tokens"), printed).validation_passed
    assert "__cedar" not in text
    for action in ACTIONS:
        assert f'action "{action}" appliesTo' in text


def test_a_lock_is_written_and_verified_before_anything_starts(
    airi: Airi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    file = tmp_path / "airi.yaml"
    file.write_text(MINIMAL.replace("airi-demo", "m"))
    result = airi("lock", str(file))
    assert result.code == 0
    assert result.out.startswith("demo: sha256 ")
    assert result.out.endswith(f"wrote {tmp_path / 'airi.lock'}\n")
    started: list[EngineOptions] = []
    monkeypatch.setattr(command, "_run", lambda options, *_: started.append(options))
    assert airi("serve", str(file)).code == 0
    assert started[0].models[0].path == str(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{ }")
    result = airi("serve", str(file))
    assert result.code == 2
    assert result.err.startswith(
        f"{file}:3: models[0].source is 'm'; accepted: the files that airi.lock was made of"
    )
    assert len(started) == 1


LITELLM = """\
model_list:
  - {model_name: a, litellm_params: {model: vllm/org/m, api_base: "http://x"}}
"""


def test_import_writes_a_config_and_says_what_it_left(airi: Airi, tmp_path: Path) -> None:
    path, target = tmp_path / "litellm.yaml", tmp_path / "airi.yaml"
    path.write_text(LITELLM)
    result = airi("import", "litellm", str(path))
    assert result.code == 0
    assert result.err == (
        f"{path}:2: model_list[0].litellm_params.api_base is not translated: "
        "not needed, as AIRI runs the model itself\n"
    )
    written = airi("import", "litellm", str(path), "--output", str(target))
    assert (written.code, written.out) == (0, "")
    assert target.read_text() == result.out
    assert airi("check", str(target)).code == 0
    again = airi("import", "litellm", str(path), "-o", str(target))
    assert (again.code, again.err) == (2, f"airi: output {target} cannot be written: File exists\n")


def test_a_config_says_what_serve_does(airi: Airi, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[EngineOptions, ServerOptions]] = []
    monkeypatch.setattr(command, "_run", lambda options, server, *_: started.append((options, server)))
    file.write_text(MINIMAL + "server: {port: 8123}\nengine: {threads: 1}\n")
    assert airi("serve", str(file), "--log-level", "warning").code == 0
    ((options, server),) = started
    assert (options.models[0].path, options.models[0].name) == (str(builtin.path()), "demo")
    assert (options.threads, server.port) == (1, 8123)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "8000"], "--port does not go with {}, which says that itself"),
        (["--host", "127.0.0.1"], "--host does not go with {}, which says that itself"),
        (["--api-key", "k"], "--api-key does not go with {}, which says that itself"),
        (["--kv-memory", "1GiB"], "--kv-memory does not go with {}, which says that itself"),
        (["--no-prefix-caching"], "--prefix-caching does not go with {}, which says that itself"),
        (["--engine", "ipc:///x", "--threads", "1"], "--threads does not go with {}, which says that itself"),
        (["airi-demo"], "models is 'airi-demo' beside {}; name it in that file"),
    ],
)
def test_flags_beside_a_config_are_refused_by_name(
    airi: Airi, file: Path, flags: list[str], says: str
) -> None:
    result = airi("serve", str(file), *flags)
    assert (result.code, result.err) == (2, f"airi: {says.format(file)}\n")


def test_a_key_in_the_environment_is_a_clients_beside_a_config(
    airi: Airi, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ServerOptions] = []
    monkeypatch.setattr(command, "_run", lambda _, server, *__: started.append(server))
    monkeypatch.setenv("AIRI_API_KEY", "hunter2")
    assert airi("serve", str(file)).code == 0
    assert started[0].app.api_keys == ()
    result = airi("serve", str(file), "--api-key", "hunter3")
    assert (result.code, "--api-key does not go with" in result.err) == (2, True)


def test_an_exported_state_must_be_the_one_that_is_served(
    airi: Airi, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ServerOptions] = []
    monkeypatch.setattr(command, "_run", lambda _, server, *__: started.append(server))
    monkeypatch.setenv("AIRI_STATE", "postgresql://me:hunter2@db/airi")
    result = airi("serve", str(file))
    assert (result.code, started) == (2, [])
    assert result.err == (
        f"airi: AIRI_STATE is postgresql://me@db/airi, server.state of {file} is sqlite:///{file.parent}/airi.db; "
        "accepted: the same, such as ${AIRI_STATE} in the file, or no AIRI_STATE\n"
    )
    file.write_text(MINIMAL + 'server: {state: "${AIRI_STATE}"}\n')
    monkeypatch.setenv("AIRI_STATE", "sqlite:///./own.db")
    (file.parent / "below").mkdir()
    monkeypatch.chdir(file.parent / "below")
    result = airi("serve", str(file))
    assert (result.code, started) == (2, []), "airi keys would make its keys in below/own.db"
    monkeypatch.chdir(file.parent)
    assert (airi("serve", str(file)).code, len(started)) == (0, 1)
    result = airi("serve", str(file), "--state", "sqlite:///other.db")
    assert (result.code, "--state does not go with" in result.err) == (2, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1"])
def test_without_keys_only_this_machine_is_served(airi: Airi, file: Path, host: str) -> None:
    file.write_text(MINIMAL + f'server: {{host: "{host}"}}\n')
    result = airi("serve", str(file))
    assert result.code == 2
    assert result.err.startswith(
        f"{file}:4: server.host is '{host}'; accepted: 127.0.0.1, ::1 or localhost, unless"
    )
    result = airi("serve", "--host", host)
    assert (result.code, result.err) == (
        2,
        f"airi: host is '{host}', which others can reach, and there are no keys: give --api-key or --state, or listen "
        "on 127.0.0.1\n",
    )


def test_wrong_policies_are_told_before_anything_starts(airi: Airi, file: Path) -> None:
    file.write_text(MINIMAL + "policies:\n  text: permit (x);\n")
    result = airi("serve", str(file))
    assert result.code == 2
    assert result.err.startswith(f"{file}:5: policies.text is not Cedar: ")


@contextmanager
def served(file: Path) -> Iterator[tuple[subprocess.Popen[str], list[str], Callable[[str], None]]]:
    """`airi serve` of a config as a process, what it has said, and a way to wait for more."""
    process = subprocess.Popen(
        [sys.executable, "-m", "airi", "serve", str(file)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    more = threading.Condition()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with more:
                said.append(line)
                more.notify_all()

    def wait_for(text: str) -> None:
        with more:
            assert more.wait_for(lambda: any(text in line for line in said), timeout=120), "".join(said)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, said, wait_for
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def test_tenants_of_a_config_are_let_in_with_their_keys(airi: Airi, file: Path) -> None:
    state = f"sqlite:///{file.parent}/keys.db"
    text = MINIMAL + (
        f"server: {{port: 0, state: '{state}'}}\nengine: {{threads: 1, kv_memory: 8MiB, max_num_seqs: 1}}\n"
        "tenants: [{name: acme, groups: [operators], auth: {key_prefix: sk-acme}}, {name: lab}]\n"
    )
    file.write_text(text)
    refused = airi("keys", "create", "nobody", "--config", str(file))
    assert refused.err == (
        f"airi: tenant is 'nobody', which {file} does not have; accepted: one of: acme, lab\n"
    )
    keys = [airi("keys", "create", name, "--config", str(file)).out.strip() for name in ("acme", "lab")]
    assert keys[0].startswith("sk-acme-")
    assert keys[1].startswith("sk-airi-")

    def statuses(url: str) -> list[int]:
        headers = [{}, *({"authorization": f"Bearer {key}"} for key in keys)]
        return [httpx.get(f"{url}/v1/models", headers=one).status_code for one in headers]

    with served(file) as (process, said, wait_for):
        wait_for("Serving demo at ")
        (url,) = [line.split(" at ")[1].split("/v1")[0] for line in said if "Serving demo at " in line]
        assert statuses(url) == [401, 200, 200]
        file.write_text(text.replace(", {name: lab}", ""))
        process.send_signal(signal.SIGHUP)
        wait_for(f"{file} was reloaded: tenants.lab.")
        assert statuses(url) == [401, 200, 401]
        file.write_text(text)
        operator, lab = ({"authorization": f"Bearer {key}"} for key in keys)
        assert httpx.post(f"{url}/admin/reload", json={}, headers=lab).status_code == 401
        changes = httpx.post(f"{url}/admin/reload", json={}, headers=operator).json()["changes"]
        assert "tenants.lab.weight" in changes
        assert httpx.post(f"{url}/admin/reload", json={}, headers=lab).status_code == 403
        assert httpx.get(f"{url}/admin/config", headers=operator).json()["path"] == str(file)
        process.terminate()
        assert process.wait(60) == 0
    assert not any(key in line for key in keys for line in said)


def test_a_hangup_reloads_and_a_wrong_file_changes_nothing(file: Path) -> None:
    text = MINIMAL + (
        f"server: {{port: 0, state: 'sqlite:///{file.parent}/keys.db'}}\n"
        "engine: {threads: 1, kv_memory: 8MiB, max_num_seqs: 1}\n"
        "tenants: [{name: acme, weight: 2}]\n"
        "observability: {audit: audit.jsonl}\n"
    )
    file.write_text(text)
    audit = file.parent / "audit.jsonl"
    with served(file) as (process, said, wait_for):
        wait_for("Serving demo at ")
        file.write_text(text.replace("weight: 2", "weight: 3"))
        process.send_signal(signal.SIGHUP)
        wait_for(f"{file} was reloaded: tenants.acme.weight")
        file.write_text(text.replace("weight: 2", "weight: heavy"))
        audit.rename(file.parent / "audit.jsonl.1")
        process.send_signal(signal.SIGHUP)
        wait_for(f"{file} was not reloaded, nothing has changed: {file}:6: tenants[0].weight is 'heavy'")
        assert audit.exists(), "rotated logs are opened again whatever the config is"
        file.write_text(text)
        process.send_signal(signal.SIGHUP)
        wait_for(f"{file} was reloaded: tenants.acme.weight")
        process.terminate()
        assert process.wait(60) == 0
    assert not any("Traceback" in line for line in said), "".join(said)
