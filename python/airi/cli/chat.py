"""`airi chat`: a conversation in the terminal, with a model in this process or with a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Protocol

import typer

from airi.cli._device_flags import (
    DEVICE_HELP,
    DTYPE_HELP,
    KV_CACHE_DTYPE_HELP,
    QUANTIZATION_HELP,
    TENSOR_PARALLEL_HELP,
)
from airi.errors import AiriError, ConfigError, ContextLengthError

__all__ = ["chat"]

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends, Ctrl-C stops an answer"

_sampling = partial(typer.Option, rich_help_panel="Sampling")
_local = partial(typer.Option, rich_help_panel="Model in this process")
_remote = partial(typer.Option, rich_help_panel="Server")

Model = Annotated[
    str | None,
    typer.Argument(
        help="Folder of a model, hf://org/name, or a served model's name with --url. "
        "Left out: the built-in demonstration model.",
        show_default=False,
    ),
]
Url = Annotated[str | None, _remote(help="Talk to this server instead, e.g. http://127.0.0.1:8000.")]
ApiKey = Annotated[str | None, _remote(help="Key for the server.", envvar="AIRI_API_KEY")]
System = Annotated[str | None, typer.Option(help="System message that opens the conversation.")]
Message = Annotated[
    str | None, typer.Option("--message", "-m", help="Ask this one thing, print the answer and end.")
]
Temperature = Annotated[
    float | None, _sampling(help="0 always takes the likeliest token. Left out: what the model suggests.")
]
TopP = Annotated[float | None, _sampling(help="Draw from the likeliest tokens up to this share.")]
MaxTokens = Annotated[int | None, _sampling(help="Longest answer. Left out: what fits.")]
Seed = Annotated[int | None, _sampling(help="Makes answers repeatable.")]
Template = Annotated[str | None, _local(help="File that replaces the model's chat template.")]
Device = Annotated[str, _local(help=DEVICE_HELP)]
Dtype = Annotated[str, _local(help=DTYPE_HELP)]
KvCacheDtype = Annotated[str, _local(help=KV_CACHE_DTYPE_HELP)]
Quantization = Annotated[str | None, _local(help=QUANTIZATION_HELP)]
TensorParallelSize = Annotated[int, _local(help=TENSOR_PARALLEL_HELP)]
Threads = Annotated[int | None, _local(help="Threads that compute; left out: all cores.")]

_LOCAL_DEFAULTS = {"device": "auto", "dtype": "auto", "kv_cache_dtype": "auto", "tensor_parallel_size": 1}
"""Of those that are not None."""


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
    model: Model = None,
    *,
    url: Url = None,
    api_key: ApiKey = None,
    system: System = None,
    message: Message = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    chat_template: Template = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kv_cache_dtype: KvCacheDtype = "auto",
    quantization: Quantization = None,
    tensor_parallel_size: TensorParallelSize = 1,
    threads: Threads = None,
) -> None:
    """Talk to a model in the terminal.

    Reads from a pipe as well: each line is a message, only the answers are printed.
    """
    given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    sampling = {name: value for name, value in given.items() if value is not None}
    options: dict[str, Any] = {
        "chat_template": chat_template,
        "threads": threads,
        "quantization": quantization,
    }
    options |= {"device": device, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype}
    options["tensor_parallel_size"] = tensor_parallel_size
    talker: Talker
    if url is not None:
        for name, value in options.items():
            if value != _LOCAL_DEFAULTS.get(name):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} belongs to a model in this process, not to --url", field=name)
        talker = RemoteTalker(url, model, api_key, sampling)
    else:
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
