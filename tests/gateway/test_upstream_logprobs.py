"""Log-probabilities that another server tells of a chat: passed on as they are, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from .conftest import StartGateway, events
from .content import TELL_BIRDS
from .test_upstreams_governed import ruled
from .upstream import DONE, STREAM, HostileServer, ask, chunk, content, event, far, front, hostile, usage


def entry(token: str, logprob: float, *tops: tuple[str, float], data: bytes | None = None) -> dict[str, Any]:
    """What a token had."""
    made = list(token.encode() if data is None else data)
    others = [{"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in tops]
    return {"token": token, "logprob": logprob, "bytes": made, "top_logprobs": others}


def told(text: str, *entries: dict[str, Any], **more: Any) -> bytes:
    """A chunk with them."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, "logprobs": {"content": entries}}
    return event({"choices": [choice | more]})


HELLO = entry("Hel", -0.5, ("Hel", -0.5), ("Hal", -1.5))
LO = entry("lo ", -0.25, ("lo ", -0.25), ("p ", -2.0))
SMILE = "🙂".encode()
PARTS = [entry("\ufffd", -1.0, data=SMILE[:2]), entry("\ufffd\ufffd", -2.0, data=SMILE[2:])]
END = chunk(finish="stop") + usage(11, 4) + DONE
WHOLE = STREAM + chunk("") + told("Hello ", HELLO, LO) + told("🙂", *PARTS) + END


@contextmanager
def asked(*parts: bytes, **options: Any) -> Iterator[tuple[httpx.Client, HostileServer]]:
    with hostile(b"".join(parts)) as server, front(far(server.url), **options) as http:
        yield http, server


def test_they_are_passed_on_whole_and_as_they_come() -> None:
    with asked(WHOLE) as (http, server):
        whole = ask(http, logprobs=True, top_logprobs=2)
        assert content(whole) == "Hello 🙂"
        assert whole.json()["choices"][0]["logprobs"]["content"] == [HELLO, LO, *PARTS]
        assert whole.json()["usage"]["completion_tokens"] == 4
        assert (server.asked[0].body["logprobs"], server.asked[0].body["top_logprobs"]) == (True, 2)
        choices = [
            e["choices"][0] for e in events(ask(http, logprobs=True, top_logprobs=2, stream=True).text)
        ]
        entries = [each for c in choices for each in (c.get("logprobs") or {}).get("content") or []]
        assert entries == [HELLO, LO, *PARTS]
        assert "".join(c["delta"].get("content") or "" for c in choices) == "Hello 🙂"


def test_no_more_alternatives_come_than_are_asked_for() -> None:
    with asked(WHOLE) as (http, _):
        found = ask(http, logprobs=True, top_logprobs=1).json()["choices"][0]["logprobs"]["content"]
        assert [len(each["top_logprobs"]) for each in found] == [1, 1, 0, 0]
        assert ask(http).json()["choices"][0]["logprobs"] is None


def test_tokens_that_spell_something_else_change_no_text() -> None:
    with asked(STREAM, told("Hello", entry("He", -1.0), entry("y", -1.0)), END) as (http, _):
        choice = ask(http, logprobs=True).json()["choices"][0]
        assert choice["message"]["content"] == "Hello"
        assert [each["token"] for each in choice["logprobs"]["content"]] == ["He", "y"]


def test_those_of_thoughts_are_not_shown() -> None:
    thoughts = [
        told("", entry("Hm", -1.0), delta={"reasoning_content": "Hm"}),
        told("", entry("Hm", -1.0), delta={"reasoning": "Hm", "content": ""}),
        told("", entry("Hm", -1.0), delta={}),
    ]
    with asked(STREAM, *thoughts, told("lo ", LO), END) as (http, _):
        choice = ask(http, logprobs=True, top_logprobs=2).json()["choices"][0]
        assert choice["message"]["content"] == "lo "
        assert choice["logprobs"]["content"] == [LO]


def test_a_refusal_has_those_of_its_own() -> None:
    choice = {"index": 0, "delta": {"refusal": "lo "}, "logprobs": {"content": None, "refusal": [LO]}}
    with asked(STREAM, event({"choices": [choice]}), END) as (http, _):
        found = ask(http, logprobs=True, top_logprobs=2).json()["choices"][0]
        assert (found["message"]["content"], found["logprobs"]["content"]) == ("lo ", [LO])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (chunk("Hello"), "gives no log-probabilities, which are asked for"),
        (told("Hello"), "gives no log-probabilities, which are asked for"),
        (told("x", {"token": "x"}), "answers with log-probabilities that are none"),
        (told("x", entry("x", -1.0) | {"bytes": [256]}), "answers with log-probabilities that are none"),
        (told("x", logprobs=[1]), "answers with log-probabilities that are none"),
    ],
)
def test_an_upstream_that_gives_none_is_told_of(part: bytes, said: str) -> None:
    with asked(STREAM, part, END) as (http, _):
        response = ask(http, logprobs=True)
        assert response.status_code == 502
        assert said in response.json()["error"]["message"]
        assert ask(http).status_code == 200  # whoever does not ask for them minds nothing


def test_what_nobody_can_tell_whose_they_are_is_refused() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    with asked(WHOLE, govern=ruled(output=[TELL_BIRDS])) as (http, server):
        for changes, said in (
            ({}, "together with content rules for answers for far"),
            ({"tools": tools}, "together with tools for far"),
        ):
            response = ask(http, logprobs=True, **changes)
            assert (response.status_code, response.json()["error"]["param"]) == (400, "logprobs")
            assert said in response.json()["error"]["message"]
        assert ask(http, top_logprobs=2).json()["error"]["param"] == "top_logprobs"
        assert server.asked == []


def test_another_airi_tells_the_same_as_is_passed_on(start_gateway: StartGateway) -> None:
    inner = start_gateway()
    with front(far(f"{inner.url}/v1")) as http:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "logprobs": True}
        near = inner.http.post("/v1/chat/completions", json=body | {"model": "tiny", "top_logprobs": 3})
        there = http.post("/v1/chat/completions", json=body | {"model": "far", "top_logprobs": 3})
        assert there.status_code == 200, there.text
        first, second = (json.loads(each.text)["choices"][0] for each in (near, there))
        assert second["message"]["content"] == first["message"]["content"]
        assert second["logprobs"] == first["logprobs"]


def test_responses_have_them_too() -> None:
    body = {"model": "far", "input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    with asked(WHOLE) as (http, _):
        response = http.post("/v1/responses", json=body)
        assert response.status_code == 200, response.text
        (part,) = response.json()["output"][0]["content"]
        assert part["logprobs"] == [HELLO, LO, *PARTS]
