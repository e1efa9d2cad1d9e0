"""`airi chat`: a conversation in the terminal, with a model in this process or with a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Protocol

import typer

from airi.errors import AiriError, ConfigError, ContextLengthError

__all__ = ["chat"]

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends, Ctrl-C stops an answer"
_SAMPLING = "Sampling"
_LOCAL = "Model in this process"
_REMOTE = "Server"


class Talker(Protocol):
    """Whoever answers."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
        """The answer to a conversation, piece by piece."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


class LocalTalker:
    """A model in this process."""

    def __init__(self, model: str | None, sampling: dict[str, Any], options: dict[str, Any]) -> None:
        from dataclasses import replace

        from airi.llm import LLM

        self._llm = LLM(model, **options)
        self._params = replace(self._llm.default_params, **sampling)

    @property
    def name(self) -> str:
        return self._llm.model

    def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
        for chunk in self._llm.chat_stream(messages, self._params):
            yield chunk.text

    def close(self) -> None:
        self._llm.close()


class RemoteTalker:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, url: str, model: str | None, api_key: str | None, sampling: dict[str, Any]) -> None:
        from airi._remote import OpenAIServer

        self._server = OpenAIServer(url, api_key)
        self._name = model or self._server.first_model()
        self._sampling = sampling

    @property
    def name(self) -> str:
        return self._name

    def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
        return self._server.chat(self._name, messages, self._sampling)

    def close(self) -> None:
        self._server.close()


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder of a model, hf://org/name, or a served model's name with --url. "
            "Left out: the built-in demonstration model.",
            show_default=False,
        ),
    ] = None,
    *,
    url: Annotated[
        str | None,
        typer.Option(
            help="Talk to this server instead, e.g. http://127.0.0.1:8000.",
            rich_help_panel=_REMOTE,
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key for the server.", envvar="AIRI_API_KEY", rich_help_panel=_REMOTE, show_default=False
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message that opens the conversation.", show_default=False)
    ] = None,
    message: Annotated[
        str | None,
        typer.Option(
            "--message", "-m", help="Ask this one thing, print the answer and end.", show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 always takes the likeliest token. Left out: what the model suggests.",
            rich_help_panel=_SAMPLING,
            show_default=False,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw from the likeliest tokens up to this share.",
            rich_help_panel=_SAMPLING,
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest answer. Left out: what fits.", rich_help_panel=_SAMPLING, show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Makes answers repeatable.", rich_help_panel=_SAMPLING, show_default=False),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="File that replaces the model's chat template.", rich_help_panel=_LOCAL, show_default=False
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.", rich_help_panel=_LOCAL)] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads that compute; left out: all cores.", rich_help_panel=_LOCAL, show_default=False
        ),
    ] = None,
) -> None:
    """Talk to a model in the terminal.

    Reads from a pipe as well: each line is a message, only the answers are printed.
    """
    given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    sampling = {name: value for name, value in given.items() if value is not None}
    talker: Talker
    if url is not None:
        if chat_template is not None or threads is not None or dtype != "auto":
            raise ConfigError(
                "--chat-template, --dtype and --threads belong to a model in this process, not to --url"
            )
        talker = RemoteTalker(url, model, api_key, sampling)
    else:
        options: dict[str, Any] = {"chat_template": chat_template, "dtype": dtype, "threads": threads}
        talker = LocalTalker(model, sampling, options)
    try:
        messages = [{"role": "system", "content": system}] if system else []
        if message is not None:
            _answer(talker, [*messages, {"role": "user", "content": message}])
        else:
            _converse(talker, messages)
    finally:
        talker.close()


def _converse(talker: Talker, messages: list[dict[str, str]]) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() history and editing
        typer.secho(f"{talker.name}. {_HELP}.", dim=True)
    first = len(messages)
    while True:
        line = _read(prompt="> " if interactive else "")
        if line is None or line.strip() in ("/exit", "/quit"):
            return
        if line.strip() == "/reset":
            del messages[first:]
        elif line.strip():
            messages.append({"role": "user", "content": line})
            try:
                answer = _answer(talker, messages)
            except AiriError as error:
                if not interactive:
                    raise
                answer = None
                _report(error)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _read(*, prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None
    except KeyboardInterrupt:
        typer.echo()
        return ""


def _report(error: AiriError) -> None:
    """One line for an answer that failed; the conversation goes on without it."""
    hint = "; /reset forgets the conversation" if isinstance(error, ContextLengthError) else ""
    typer.echo(f"airi: {' '.join(str(error).split())}{hint}", err=True)


def _answer(talker: Talker, messages: list[dict[str, str]]) -> str | None:
    """Prints the answer as it comes; None when it was interrupted."""
    parts: list[str] = []
    pieces = talker.answer(messages)
    try:
        for text in pieces:
            parts.append(text)
            typer.echo(text, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        typer.echo()
        return None
    except AiriError:
        if parts:
            typer.echo()  # what is said about the error gets a line of its own
        raise
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    typer.echo()
    return "".join(parts)
