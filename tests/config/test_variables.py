"""Variables in configs, and values that no line may hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from airi.config import ConfigFile, load
from airi.config.check import check
from airi.config.lock import resolve
from airi.errors import ConfigFileError

from .conftest import CANARY, config, lines, with_demo


@pytest.mark.parametrize(
    ("value", "environ", "port"),
    [
        ("${PORT}", {"PORT": "81"}, 81),
        ('"${PORT}"', {"PORT": "81"}, 81),
        ("${PORT:-82}", {}, 82),
        ("${PORT:-82}", {"PORT": ""}, 82),
        ("8${PORT}0", {"PORT": "3"}, 830),
    ],
)
def test_variables_stand_for_numbers(value: str, environ: dict[str, str], port: int) -> None:
    assert config(with_demo(f"server:\n  port: {value}\n"), environ).config.server.port == port


def test_variables_stand_for_texts_whatever_they_look_like() -> None:
    tenants = config(with_demo("tenants:\n  - name: ${NAME}\n    groups: ['${NAME}']\n"), {"NAME": "12"})
    assert tenants.config.tenants[0].name == "12"
    assert tenants.config.tenants[0].groups == ("12",)


def test_an_alias_has_what_its_anchor_has() -> None:
    found = config(
        with_demo(
            "tenants:\n  - name: a\n    groups: [&n '${N}', *n]\n    priority: &p ${N}\n    weight: *p\n"
        ),
        {"N": "3"},
    )
    (tenant,) = found.config.tenants
    assert (tenant.groups, tenant.priority, tenant.weight) == (("3", "3"), 3, 3.0)
    plain = "tenants:\n  - name: a\n    groups: [&n '${N}', *n]\n"
    assert config(with_demo(plain), {"N": "3"}).config.tenants[0].groups == ("3", "3")


def test_two_dollar_signs_are_one_and_one_alone_is_itself() -> None:
    rules = "content:\n  input:\n    - {name: a, regexes: ['^x$', 'a$$b', '$${c}', '\\\\$5']}\n"
    (rule,) = config(with_demo(rules)).config.content.input
    assert rule.regexes == ("^x$", "a$b", "${c}", "\\\\$5")


def test_an_empty_variable_leaves_its_key_out() -> None:
    text = with_demo("server:\n  shared_counters: ${REDIS:-}\n  state: ${STATE:-sqlite:///x.db}\n")
    server = config(text).config.server
    assert (server.shared_counters, server.state) == (None, "sqlite:///x.db")
    assert config(with_demo('server: {shared_counters: "${R:-}"}')).config.server.shared_counters is None


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("${NOPE}", "a variable that is set, or ${NOPE:-default}"),
        ("${1}", "${NAME}, ${NAME:-default}, or $$ for a dollar sign"),
        ("${A-b}", "${NAME}, ${NAME:-default}, or $$ for a dollar sign"),
        ("${A", "${NAME}, ${NAME:-default}, or $$ for a dollar sign"),
        ("${A:-${B}}", "${NAME}, ${NAME:-default}, or $$ for a dollar sign"),
    ],
)
def test_a_variable_that_cannot_be_is_named_as_it_was_written(value: str, accepted: str) -> None:
    assert lines(with_demo(f"server:\n  state: {value}\n")) == [
        f"5: server.state is '{value}'; accepted: {accepted}"
    ]


def test_a_variable_is_no_yaml() -> None:
    evil = "x\nserver: {host: 0.0.0.0}\n"
    found = lines(with_demo("tenants:\n  - name: ${NAME}\n"), {"NAME": evil})
    assert found[0].startswith("5: tenants[0].name is '${NAME}'; accepted: 1 to 63")


# -- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "server: {state: '${SECRET}'}",
        "server: {port: '${SECRET}', host: 'a ${SECRET}'}",
        f"server: {{state: 'mysql://user:{CANARY}@host/db'}}",
        f"server: {{shared_counters: 'http://:{CANARY}@host'}}",
        f"server: {{api_key: {CANARY}}}",
        f"tenants: [{{name: a, auth: {{key_prefix: sk-acme-{CANARY}{CANARY}}}}}]",
        f"tenants: [{{name: a, api_key: {CANARY}}}]",
        f"sk-{CANARY}{CANARY}: 1",
        f"server: {{port: sk-proj-{CANARY}}}",
        f"x: ['{CANARY}\n",
        f"x: {CANARY}: {CANARY}",
        f"server: {{port: {{password: {CANARY}}}}}",
    ],
)
def test_no_line_holds_a_secret(text: str) -> None:
    assert CANARY not in "\n".join(lines(with_demo(text), {"SECRET": CANARY}))


@pytest.mark.parametrize("act", [check, resolve])
def test_no_message_of_others_holds_the_value_of_a_variable(
    act: Callable[[ConfigFile], object], tmp_path: Path
) -> None:
    folder = tmp_path / CANARY
    path = tmp_path / "airi.yaml"
    path.write_text(
        "version: 1\nmodels:\n  - {name: a, source: '${SECRET}', chat_template: '${SECRET}/t.jinja'}\n"
    )
    file = load(path, {"SECRET": str(folder)})
    told: list[str] = []
    for is_there in (False, True):
        if is_there:
            folder.mkdir()
            (folder / "gone").symlink_to(folder / "nothing")
        with pytest.raises(ConfigFileError) as caught:
            act(file)
        told += caught.value.lines
    assert len(told) >= 2
    assert CANARY not in "".join(told)


def test_policies_are_taken_as_they_are_written() -> None:
    text = 'policies:\n  text: |\n    permit (principal, action, resource) when { principal.name == "${X} $$" };\n'
    assert '"${X} $$"' in (config(with_demo(text)).policies or "")
