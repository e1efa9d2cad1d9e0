"""`airi keys`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airi.config import load
from airi.config.options import server_options
from airi.state.urls import StateUrl

Airi = Callable[..., Any]
KEY = re.compile(r"(sk-airi)-([a-z0-9]{12})-([A-Za-z0-9]{43})")


@pytest.fixture
def keys(airi: Airi, state_url: str) -> Airi:
    """Runs `airi keys` over an empty store of each kind."""
    return lambda *arguments: airi("keys", *arguments, "--store", state_url)


def created(keys: Airi, *arguments: str) -> str:
    result = keys("create", *arguments)
    assert result.code == 0
    return str(result.out.strip())


def test_the_key_and_nothing_else_goes_to_stdout_once(keys: Airi) -> None:
    result = keys("create", "acme", "--expires", "90d")
    match = KEY.fullmatch(result.out.removesuffix("\n"))
    assert match is not None
    assert re.fullmatch(
        rf"key {match[2]} of acme, accepted until \d{{4}}-\d\d-\d\dT[\d:]{{8}}Z; it is not shown again:\n",
        result.err,
    )
    for shown in (keys("list"), keys("list", "--json"), keys("revoke", match[2], "--json")):
        assert match[2] in shown.out
        assert match[3] not in shown.out + shown.err


def test_a_list_shows_every_key_with_its_state(keys: Airi) -> None:
    ids = [created(keys, name).split("-")[2] for name in ("acme", "acme", "internal-batch")]
    keys("revoke", ids[0])
    successor = keys("rotate", ids[1], "--overlap", "1h").out.split("-")[2]
    lines = keys("list").out.splitlines()
    assert lines[0].split() == ["ID", "TENANT", "PREFIX", "STATE", "CREATED", "ENDS"]
    table = {line.split()[0]: line for line in lines[1:]}
    assert set(table) == {*ids, successor}
    assert " revoked " in table[ids[0]]
    assert f" rotated to {successor} " in table[ids[1]]
    assert " active " in table[ids[2]]
    assert table[ids[2]].rstrip().endswith("-")
    only = json.loads(keys("list", "--tenant", "internal-batch", "--json").out)
    assert [(key["id"], key["tenant"], key["state"], key["expires"]) for key in only] == [
        (ids[2], "internal-batch", "active", None)
    ]
    assert json.loads(keys("list", "--tenant", "nobody", "--json").out) == []


def test_json_is_one_object_on_stdout(keys: Airi) -> None:
    made = json.loads(keys("create", "acme", "--prefix", "sk-acme", "--expires", "2w", "--json").out)
    assert made["key"].startswith(f"sk-acme-{made['id']}-")
    assert list(made) == [
        "id",
        "tenant",
        "prefix",
        "state",
        "created",
        "expires",
        "revoked",
        "retires",
        "replaced_by",
        "key",
    ]
    rotated = json.loads(keys("rotate", made["id"], "--overlap", "0s", "--json").out)
    assert (rotated["tenant"], rotated["prefix"], rotated["state"]) == ("acme", "sk-acme", "active")
    revoked = json.loads(keys("revoke", rotated["id"], "--json").out)
    assert revoked["state"] == "revoked"
    assert "key" not in revoked


def test_the_whole_key_may_name_it_and_is_not_repeated(keys: Airi) -> None:
    text = created(keys, "acme")
    result = keys("revoke", text)
    assert result.code == 0
    assert text.split("-")[3] not in result.out + result.err
    again = keys("rotate", text)
    assert again.code == 2
    assert "is revoked; only an active key can be rotated" in again.err
    assert text.split("-")[3] not in again.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "a b"], "tenant is 'a b'"),
        (["create", "acme", "--expires", "soon"], "expires is 'soon'; give a whole number and a unit"),
        (["create", "acme", "--expires", "0d"], "expires is 0 s from now"),
        (["create", "acme", "--expires", "-5d"], "expires is '-5d'"),
        (["create", "acme", "--prefix", "sk acme"], "key_prefix is 'sk acme'"),
        (["rotate", "a" * 12, "--overlap", "1y"], "overlap is '1y'"),
        (["rotate", "a" * 12], "key aaaaaaaaaaaa is not known"),
        (["revoke", "a" * 12], "key aaaaaaaaaaaa is not known; `airi keys list` shows all"),
        (["revoke", "sk-airi-" + "a" * 12 + "-tooshort"], "key is named by what is no id"),
        (["list", "extra"], "extra"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(keys: Airi, arguments: list[str], says: str) -> None:
    result = keys(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("airi: ")
    assert result.err.count("\n") == 1
    assert says in result.err
    assert "tooshort" not in result.err
    assert json.loads(keys("list", "--json").out) == []


def test_a_store_that_cannot_be_opened_is_one_line_without_its_password(airi: Airi) -> None:
    result = airi("keys", "list", "--store", "postgresql://airi:rain-on-tin@127.0.0.1:1/airi")
    assert result.code == 2
    assert result.err.startswith("airi: state postgresql://airi@127.0.0.1:1/airi cannot be opened: ")
    assert "rain-on-tin" not in result.err


def test_the_environment_names_the_store(
    airi: Airi, make_state_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRI_STATE", make_state_url("sqlite"))
    text = airi("keys", "create", "acme").out
    assert text.split("-")[2] in airi("keys", "list").out
    monkeypatch.setenv("AIRI_STATE", "postgresql://airi:rain-on-tin@127.0.0.1:1/airi")
    assert "rain-on-tin" not in airi("keys", "create", "--help").out


def test_without_a_command_there_is_help(airi: Airi) -> None:
    result = airi("keys")
    assert result.code == 0
    for name in ("create", "list", "revoke", "rotate"):
        assert f" {name} " in result.out


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An airi.yaml in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIRI_STATE", raising=False)
    (tmp_path / "airi.yaml").write_text(
        "version: 1\nserver: {state: 'sqlite:///./own.db'}\nmodels: [{name: demo, source: airi-demo}]\n"
        "tenants: [{name: acme, auth: {key_prefix: sk-acme}}, {name: lab}]\n"
    )
    return tmp_path / "airi.yaml"


def test_the_config_of_the_folder_names_the_database_and_prefixes(airi: Airi, config: Path) -> None:
    first = airi("keys", "create", "acme").out
    assert first.startswith("sk-acme-")
    assert airi("keys", "create", "lab").out.startswith("sk-airi-")
    assert {path.name for path in config.parent.glob("*.db")} == {"own.db"}
    assert airi("keys", "rotate", first.strip(), "--overlap", "1h").out.startswith("sk-acme-")
    assert airi("keys", "revoke", first.strip()).code == 0
    assert airi("keys", "list").out.count("sk-acme") == 2


def test_the_database_of_a_config_is_beside_it_wherever_one_stands(
    airi: Airi, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config.parent / "a folder%41").mkdir()
    elsewhere = config.rename(config.parent / "a folder%41" / "airi.yaml")
    key = airi("keys", "create", "acme", "--config", str(elsewhere.relative_to(config.parent))).out.strip()
    assert list(config.parent.glob("*.db")) == []
    assert (elsewhere.parent / "own.db").exists()
    monkeypatch.chdir(elsewhere.parent)
    assert key.split("-")[2] in airi("keys", "list").out
    served = server_options(load(elsewhere)).app.state
    assert served is not None
    assert StateUrl.parse(served).path == elsewhere.parent / "own.db"


def test_a_tenant_that_the_config_does_not_have_gets_no_key_there(airi: Airi, config: Path) -> None:
    for arguments in (
        [],
        ["--config", "airi.yaml"],
        ["--config", "airi.yaml", "--store", "sqlite:///./b.db"],
    ):
        refused = airi("keys", "create", "nobody", *arguments)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err == (
            "airi: tenant is 'nobody', which airi.yaml does not have; accepted: one of: acme, lab\n"
        )
    assert airi("keys", "create", "nobody", "--store", "sqlite:///./b.db").out.startswith("sk-airi-")


def test_a_store_that_is_said_comes_before_the_configs(
    airi: Airi, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRI_STATE", "sqlite:///./said.db")
    assert airi("keys", "create", "acme").out.startswith("sk-acme-")
    assert {path.name for path in config.parent.glob("*.db")} == {"said.db"}


def test_a_config_that_is_said_must_be_there(airi: Airi, config: Path) -> None:
    result = airi("keys", "list", "--config", "other.yaml")
    assert (result.code, result.err) == (2, "airi: other.yaml cannot be read: No such file or directory\n")


def test_a_name_may_be_used_without_any_config(
    airi: Airi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIRI_STATE", raising=False)
    assert airi("keys", "create", "acme").out.startswith("sk-airi-")
    assert (tmp_path / "airi.db").exists()
