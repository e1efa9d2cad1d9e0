"""`airi chat`: with a model in this process, with a server, from a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from airi.errors import AiriError, ContextLengthError
from tests.cli.conftest import StubServer

Airi = Callable[..., Any]


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.mark.usefixtures("_fake_engine")
def test_a_message_is_answered_by_the_model_in_this_process(airi: Airi, folder: Path) -> None:
    result = airi("chat", str(folder), "--system", "Be brief.", "-m", "Hello", "--temperature", "0")
    assert (result.code, result.err) == (0, "")
    assert result.out == " echo system: Be brief.\nuser: Hello\nassistant:\n"


@pytest.mark.usefixtures("_fake_engine")
def test_lines_of_a_pipe_are_one_conversation(
    airi: Airi, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "one", "", "/reset", "two", "/exit", "never")
    result = airi("chat", str(folder), "--max-tokens", "100")
    assert result.out == " echo user: one\nassistant:\n echo user: two\nassistant:\n"


@pytest.mark.usefixtures("_fake_engine")
def test_sampling_options_are_checked(airi: Airi, folder: Path) -> None:
    result = airi("chat", str(folder), "-m", "x", "--temperature", "-1")
    assert result.code == 2
    assert "temperature must be in [0, 100], got -1" in result.err


def test_a_server_is_asked_as_openai_clients_ask(
    airi: Airi, server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "Hi", "And you?")
    result = airi("chat", "--url", server.url, "--api-key", "k", "--seed", "3", "--max-tokens", "9")
    assert result.out == "Hello there.\n" * 2
    first, second = server.bodies
    assert first == {
        "path": "/v1/chat/completions",
        "model": "stub-1",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "seed": 3,
        "max_tokens": 9,
    }
    assert [m["content"] for m in second["messages"]] == ["Hi", "Hello there.", "And you?"]
    assert server.keys[0] == "Bearer k"


def test_a_named_model_of_a_server_is_not_looked_up(airi: Airi, server: StubServer) -> None:
    result = airi("chat", "other", "--url", server.url + "/v1/", "-m", "Hi")
    assert result.out == "Hello there.\n"
    assert server.bodies[0]["model"] == "other"
    assert server.keys == []


def test_a_servers_refusal_is_one_line(airi: Airi, server: StubServer) -> None:
    server.status = 400
    result = airi("chat", "--url", server.url, "-m", "Hi")
    assert (result.code, result.err) == (2, f"airi: {server.url}: status 400: not today\n")


def test_an_error_inside_a_stream_is_one_line(airi: Airi, server: StubServer) -> None:
    server.error_event = True
    result = airi("chat", "--url", server.url, "-m", "Hi")
    assert result.code == 2
    assert result.err.endswith("engine died\n")


def test_a_server_without_models_or_without_a_server_is_one_line(airi: Airi, server: StubServer) -> None:
    server.models = []
    assert airi("chat", "--url", server.url, "-m", "Hi").err == f"airi: {server.url} serves no model\n"
    result = airi("chat", "--url", "http://127.0.0.1:9", "-m", "Hi")
    assert "http://127.0.0.1:9 cannot be reached" in result.err


@pytest.mark.parametrize("page", [b"<html>", b"[]", b"{}", b'{"data": [7]}', b'{"data": [{"name": "x"}]}'])
def test_a_server_of_another_kind_is_one_line(airi: Airi, server: StubServer, page: bytes) -> None:
    server.page = page
    result = airi("chat", "--url", server.url, "-m", "Hi")
    assert (result.code, result.err) == (2, f"airi: {server.url} does not answer as an OpenAI server does\n")


@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_that_breaks_off_is_one_line(airi: Airi, server: StubServer, *, chunked: bool) -> None:
    server.cut_after, server.chunked = 2, chunked
    result = airi("chat", "--url", server.url, "-m", "Hi")
    assert (result.code, result.out) == (2, "Hello \n")
    assert result.err.startswith(f"airi: {server.url} cannot be reached: ")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port", "http://[::1"])
def test_a_broken_url_is_named(airi: Airi, url: str) -> None:
    result = airi("chat", "--url", url, "-m", "Hi")
    assert (result.code, result.err) == (2, f"airi: url is {url!r}; give http://HOST:PORT\n")


def test_options_of_a_local_model_do_not_go_with_a_server(airi: Airi, server: StubServer) -> None:
    result = airi("chat", "--url", server.url, "--threads", "2", "-m", "Hi")
    assert result.code == 2
    assert "not to --url" in result.err


class Terminal(io.StringIO):
    """A keyboard: lines that are typed, one of them Ctrl-C."""

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]  # as StringIO's own
        line = super().readline(-1 if size is None else size)
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


class Echo:
    """Answers with what was said; is interrupted in the middle of an answer to "long", fails at other words."""

    name = "echo-model"
    heard: ClassVar[list[list[str]]] = []

    def __init__(self, *args: object) -> None:
        self.heard.clear()

    def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
        self.heard.append([m["content"] for m in messages])
        yield "you said "
        if messages[-1]["content"] == "long":
            raise KeyboardInterrupt
        if messages[-1]["content"] == "full":
            raise ContextLengthError("no room")
        if messages[-1]["content"] == "break":
            raise AiriError("broke\noff")
        yield messages[-1]["content"]

    def close(self) -> None:
        self.heard.append(["closed"])


def test_a_terminal_shows_the_model_and_survives_interrupts(
    airi: Airi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.cli.chat.LocalTalker", Echo)
    monkeypatch.setattr(sys, "stdin", Terminal("one\nlong\n^C\ntwo\n"))
    result = airi("chat")
    assert result.code == 0
    assert "echo-model. /reset forgets" in result.out
    assert "> you said one\n" in result.out
    assert Echo.heard == [
        ["one"],
        ["one", "you said one", "long"],
        ["one", "you said one", "two"],
        ["closed"],
    ]


def test_a_failed_answer_does_not_end_a_conversation_at_a_terminal(
    airi: Airi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.cli.chat.LocalTalker", Echo)
    monkeypatch.setattr(sys, "stdin", Terminal("one\nbreak\nfull\ntwo\n"))
    result = airi("chat")
    assert result.code == 0
    assert result.err == "airi: broke off\nairi: no room; /reset forgets the conversation\n"
    assert Echo.heard[-2:] == [["one", "you said one", "two"], ["closed"]]


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (429, "queue_full", "status 429: not today\n"),
        (400, "context_length_exceeded", "status 400: not today; /reset forgets the conversation\n"),
    ],
)
def test_a_servers_refusal_does_not_end_a_conversation_at_a_terminal(
    airi: Airi, server: StubServer, monkeypatch: pytest.MonkeyPatch, status: int, code: str, said: str
) -> None:
    server.status, server.code = status, code
    monkeypatch.setattr(sys, "stdin", Terminal("one\ntwo\n"))
    result = airi("chat", "--url", server.url)
    assert (result.code, result.err) == (0, f"airi: {server.url}: {said}" * 2)
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["two"]


def test_a_failed_answer_ends_a_pipe(airi: Airi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airi.cli.chat.LocalTalker", Echo)
    say(monkeypatch, "one", "full", "two")
    result = airi("chat")
    assert (result.code, result.err) == (2, "airi: no room\n")
    assert result.out == "you said one\nyou said \n"
