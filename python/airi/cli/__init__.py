"""The command `airi`. Each sub-command lives in a module of its own, imported when it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from keyword import iskeyword
from typing import Annotated, Any

import typer
import typer.core

import airi
from airi.errors import AiriError, ConfigFileError

__all__ = ["main"]

COMMANDS = (
    "serve",
    "chat",
    "ingest",
    "search",
    "keys",
    "check",
    "schema",
    "lock",
    "rollout",
    "explain",
    "import",
    "verify",
    "bench",
    "simulate",
)

_USER_ERROR = 2
_INTERRUPTED = 130


class _LazyGroup(typer.core.TyperGroup):
    """Finds sub-commands by importing their modules, so that one does not pay for the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"airi.cli.{cmd_name}{'_' * iskeyword(cmd_name)}")
        sub = getattr(module, "app", None)
        if sub is None:
            sub = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            sub.command()(getattr(module, cmd_name))
        command = typer.main.get_command(sub)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_LazyGroup,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", "-V", help="Show the version and exit.")] = False,
) -> None:
    """AIRI runs language models and serves them to any OpenAI client.

    Start with `airi chat`, which talks to the built-in demonstration model, or
    `airi serve`, which serves it on http://127.0.0.1:8000. Both take a model instead:
    a folder in Hugging Face's format, or hf://org/name.
    """
    if version:
        typer.echo(f"airi {airi.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    try:
        result = typer.main.get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="airi", standalone_mode=False
        )
    except ConfigFileError as error:
        for line in error.lines:
            typer.echo(line, err=True)
        return _USER_ERROR
    except AiriError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except Exception as error:
        # Typer's own errors; their class has moved between its releases, their method has not.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "airi"
        message = describe().strip()
        message += "" if not message or message.endswith((".", "!", "?")) else "."
        return _fail(f"{message} See `{path} --help`." if message else f"See `{path} --help`.")
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    typer.echo(f"airi: {' '.join(message.split())}", err=True)
    sys.stderr.flush()
    return _USER_ERROR
