"""The command line as a whole: help, version, mistakes in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer

import airi as package
from airi import cli
from airi.errors import ConfigError

Airi = Callable[..., Any]


def test_version_is_the_packages(airi: Airi) -> None:
    assert airi("--version").out == f"airi {package.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command_with_what_it_does(airi: Airi, arguments: tuple[str, ...]) -> None:
    result = airi(*arguments)
    assert result.code == 0
    for name in cli.COMMANDS:
        assert f" {name} " in result.out
    assert "airi chat" in result.out
    assert "built-in" in result.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(airi: Airi, name: str) -> None:
    result = airi(name, "--help")
    assert result.code == 0
    assert f"Usage: airi {name}" in result.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nope"], "No such option: --nope"),
        (["nope"], "No such command 'nope'. See `airi --help`."),
        (["chat", "--nope"], "See `airi chat --help`."),
        (["chat", "--temperature", "hot"], "Invalid value for '--temperature'"),
        (["chat", "/nowhere/model"], "/nowhere/model"),
        (["bench", "nope"], "No such command 'nope'"),
        (["bench", "throughput", "--shape", "square"], "shape is 'square'; accepted: llama-2m"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(airi: Airi, arguments: list[str], says: str) -> None:
    result = airi(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("airi: ")
    assert result.err.count("\n") == 1
    assert says in result.err


def _raise(error: BaseException) -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.command()
    def command() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (ConfigError("two\nlines"), 2, "airi: two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(7), 7, ""),
        (typer.Abort(), 130, ""),
    ],
)
def test_exit_codes(
    airi: Airi, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, err: str
) -> None:
    import airi.cli.chat as module

    monkeypatch.setattr(module, "app", _raise(error), raising=False)
    result = airi("chat")
    assert (result.code, result.err) == (code, err)


def test_a_bug_is_not_hidden(airi: Airi, monkeypatch: pytest.MonkeyPatch) -> None:
    import airi.cli.chat as module

    monkeypatch.setattr(module, "app", _raise(ZeroDivisionError("bug")), raising=False)
    with pytest.raises(ZeroDivisionError):
        airi("chat")


def test_python_m_airi_is_airi_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, runpy; sys.argv = ['airi', '--version']\n"
        "try: runpy.run_module('airi', run_name='__main__')\n"
        "except SystemExit as end: print(end.code)\n"
        "print([m for m in ('torch', 'zmq', 'starlette', 'tokenizers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == [f"airi {package.__version__}", "0", "[]"]
