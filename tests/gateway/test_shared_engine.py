"""A config before an engine that runs already: `airi serve airi.yaml --engine ENDPOINT`."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from airi import builtin
from airi.cli import main
from airi.transport.stub import StubOptions

from .conftest import serve_process, stub_engine

CONFIG = """\
version: 1
server: {port: 0, state: "sqlite:///FOLDER/airi.db"}
models: [{name: demo, source: airi-demo, aliases: [d]}]
tenants: [{name: acme, limits: {rpm_limit: 1}}]
"""
CHAT = {"model": "d", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def options(folder: Path, name: str = "demo") -> StubOptions:
    path = str(builtin.path())
    return StubOptions(endpoint=f"ipc://{folder}/engine", model_path=path, name=name, aliases=("d",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "airi.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    return path


def test_gateways_of_one_config_share_an_engine(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(path.read_text().replace(", limits: {rpm_limit: 1}", ""))
    assert main(["keys", "create", "acme", "--config", str(path)]) == 0
    headers = {"authorization": f"Bearer {capsys.readouterr().out.strip()}"}
    given = options(tmp_path)
    with stub_engine(given) as stub:
        serve = (str(path), "--engine", given.endpoint)
        with serve_process(*serve) as (_, one, _), serve_process(*serve) as (_, two, _):
            for url in (one, two):
                answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers, timeout=20)
                assert answer.status_code == 200
                assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 401
        assert stub.num_requests == 2


def test_a_second_gateway_that_would_allow_all_of_a_limit_again_does_not_start(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(tmp_path)
    with stub_engine(given), serve_process(str(path), "--engine", given.endpoint):
        assert main(["serve", str(path), "--engine", given.endpoint]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("airi: limits cannot be counted: state sqlite:///")
    assert said.endswith("is used by another server; several share limits by server.shared_counters")


def test_an_engine_with_other_models_is_not_served(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(tmp_path, "other")
    with stub_engine(given):
        assert main(["serve", str(path), "--engine", given.endpoint]) == 2
    said = capsys.readouterr().err
    assert "airi.yaml:3: models[0].name is 'demo'; accepted: what the engine serves, one of: other" in said
