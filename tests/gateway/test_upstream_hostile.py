"""Whatever another server does, a call ends: with an answer, or with one error that says what was wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from .conftest import events, wait_until
from .upstream import (
    CHAT,
    DONE,
    GOOD,
    STREAM,
    Connection,
    HostileServer,
    Say,
    ask,
    chunk,
    content,
    event,
    far,
    front,
    hostile,
    usage,
)
from .upstream import status as answer

CALL = {"index": 0, "id": "a", "function": {"name": "look", "arguments": '{"a'}}


def says(*parts: bytes, hangs: bool = False) -> Say:
    """Sends parts, and then hangs up or says nothing more."""

    def say(connection: Connection) -> None:
        for part in parts:
            connection.send(part)
        if hangs:
            connection.hang()

    return say


def endless(part: bytes) -> Say:
    """Sends the same for as long as somebody listens."""

    def say(connection: Connection) -> None:
        connection.send(STREAM)
        try:
            while not connection.server.over.is_set():
                connection.send(part)
        except OSError:
            connection.server.hung_up.set()

    return say


WRONG: dict[str, tuple[bytes | Say, int, str]] = {
    "nothing": (b"", 502, "closed the connection without an answer"),
    "no http": (b"220 mail.example ESMTP\r\n\r\n", 502, "no HTTP"),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-ty", 502, "closed the connection without an answer"),
    "a huge head": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", 502, "no HTTP"),
    "another kind": (answer(200, b"<html>"), 502, "something else than a stream"),
    "a whole answer": (answer(200, b'{"choices": []}'), 502, "something else than a stream"),
    "packed": (
        STREAM.replace(b"connection", b"content-encoding: gzip\r\nconnection") + DONE,
        502,
        "encoding",
    ),
    "a redirect": (answer(302, location="http://example.com/"), 502, "status 302"),
    "the wrong key": (answer(401), 502, "does not accept this server's key"),
    "no such model": (answer(404), 502, "no such model or path"),
    "broken": (answer(500), 502, "status 500"),
    "overloaded": (answer(503), 502, "status 503"),
    "busy": (answer(429, retry_after="7"), 503, "is at its limit"),
    "no event": (STREAM, 502, "ended its answer before it began"),
    "only the end": (STREAM + DONE, 502, "ended its answer before it began"),
    "comments": (STREAM + b": wait\n\n" * 9, 502, "ended its answer before it began"),
    "no json": (STREAM + b"data: <oops>\n\n", 502, "no chunks of an answer"),
    "another json": (STREAM + event([1, 2]), 502, "no chunks of an answer"),
    "no text": (STREAM + event({"choices": [{"delta": {"content": 7}}]}), 502, "no chunks of an answer"),
    "deep json": (STREAM + b"data: " + b"[" * 99_999 + b"\n\n", 502, "no chunks of an answer"),
    "no utf-8": (STREAM + b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', 502, "no chunks"),
    "an error": (STREAM + event({"error": {"message": "CUDA"}}), 502, "ended its answer with an error"),
    "another choice": (STREAM + chunk("x", index=5), 502, "a choice that nobody asked for"),
    "a negative choice": (STREAM + chunk("x", index=-1), 502, "no chunks of an answer"),
    "a call": (STREAM + event({"choices": [{"delta": {"tool_calls": [CALL]}}]}), 502, "a call of a tool"),
    "given up": (STREAM + chunk("x", finish="abort"), 502, "gave the request up"),
    "no line end": (STREAM + b"data: " + b"x" * (5 << 20), 502, "more than an answer can be"),
    "hangs": (says(hangs=True), 504, "took too long for its answer to begin"),
    "a head alone": (says(STREAM, hangs=True), 504, "took too long for its first event"),
    "half an event": (says(STREAM + b"data: {", hangs=True), 504, "took too long for its first event"),
    "pings": (endless(b": ping\n\n"), 504, "took too long for its first event"),
}


All = tuple[httpx.Client, dict[str, HostileServer]]


@contextmanager
def all_of(scripts: Mapping[str, bytes | Say], **options: Any) -> Iterator[All]:
    """One gateway with a model for each script, called as that is."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(hostile(script)) for name, script in scripts.items()}
        models = [replace(far(each.url, name=name, **options), aliases=()) for name, each in servers.items()]
        yield stack.enter_context(front(*models)), servers


@pytest.fixture(scope="module")
def wrong() -> Iterator[All]:
    scripts = {name: script for name, (script, _, _) in WRONG.items()}
    with all_of(scripts, first_token_timeout_s=1.0) as found:
        yield found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_answer_is_one_error(wrong: All, name: str, stream: bool) -> None:  # noqa: FBT001
    http, servers = wrong
    _, status, message = WRONG[name]
    before = len(servers[name].asked)
    response = ask(http, model=name, stream=stream)
    assert response.status_code == status
    error = response.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["code"]) == ("upstream_error", "upstream_error")
    assert len(servers[name].asked) == before + 1
    assert ("retry-after" in response.headers) == (status == 503)


HALF: dict[str, tuple[bytes | Say, str]] = {
    "it hangs up": (STREAM + chunk("Hel"), "ended its answer in the middle"),
    "a cut body": (
        STREAM.replace(b"connection", b"content-length: 9999\r\nconnection") + chunk("Hel"),
        "ended its answer in the middle",
    ),
    "garbage": (STREAM + chunk("Hel") + b"data: {oops\n\n", "no chunks of an answer"),
    "an error": (STREAM + chunk("Hel") + event({"error": "x"}), "ended its answer with an error"),
    "it says done": (STREAM + chunk("Hel") + DONE, "ended its answer in the middle"),
    "it hangs": (says(STREAM + chunk("Hel"), hangs=True), "took too long for its next event"),
    "no end": (endless(chunk("Hel")), "took too long for its answer to end"),
}


@pytest.fixture(scope="module")
def half() -> Iterator[All]:
    scripts = {name: script for name, (script, _) in HALF.items()}
    with all_of(scripts, idle_timeout_s=1.0, timeout_s=2.0, max_retries=5) as found:
        yield found


@pytest.mark.parametrize("name", HALF)
def test_half_an_answer_ends_with_an_error_and_is_not_asked_for_again(half: All, name: str) -> None:
    http, servers = half
    _, message = HALF[name]
    told = events(ask(http, model=name, stream=True).text)
    assert told[1]["choices"][0]["delta"]["content"] == "Hel"
    assert message in told[-1]["error"]["message"]
    assert told[-1]["error"]["type"] == "upstream_error"
    response = ask(http, model=name)
    assert response.status_code in (502, 504)
    assert message in response.json()["error"]["message"]
    assert len(servers[name].asked) == 2


def test_a_stream_that_goes_on_and_on_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airi.upstreams.client.MOST_ANSWER_BYTES", 1 << 20)
    with hostile(endless(chunk("x" * 1000))) as server, front(far(server.url)) as http:
        response = ask(http)
        assert response.status_code == 502
        assert "more than an answer can be" in response.json()["error"]["message"]
        assert server.hung_up.wait(30)


@pytest.mark.parametrize(
    "first",
    [b"", answer(429, retry_after="0"), answer(502), answer(503, retry_after="0.01"), answer(504)],
    ids=["disconnect", "429", "502", "503", "504"],
)
def test_what_is_safe_is_asked_again(first: bytes) -> None:
    with hostile(first, first, GOOD) as server, front(far(server.url, max_retries=2)) as http:
        assert content(ask(http)) == "Hello there"
        assert len(server.asked) == 3
        metrics = http.get("/metrics").text
        assert 'airi_upstream_retries_total{model_name="far"} 2.0' in metrics
        assert 'airi_upstream_attempts_total{model_name="far",outcome="ok"} 1.0' in metrics


@pytest.mark.parametrize("first", [answer(500), answer(401), answer(400), answer(429, retry_after="900")])
def test_what_is_not_is_asked_once(first: bytes) -> None:
    with hostile(first, GOOD) as server, front(far(server.url, max_retries=5)) as http:
        assert ask(http).status_code in (400, 502, 503)
        assert len(server.asked) == 1


def test_who_asks_to_wait_long_is_told_to_the_client() -> None:
    with hostile(answer(429, retry_after="900")) as server, front(far(server.url, max_retries=5)) as http:
        assert ask(http).headers["retry-after"] == "900"


def test_a_server_that_is_not_there_is_one_error() -> None:
    with front(far("http://127.0.0.1:9/v1", max_retries=1)) as http:
        response = ask(http)
        assert response.status_code == 502
        assert "cannot be reached" in response.json()["error"]["message"]
        assert http.get("/health").status_code == 200

        def is_down() -> bool:
            return http.get("/ready").status_code == 503

        wait_until(is_down, "the only upstream is down, and /ready does not say so")
        assert 'airi_upstream_up{model_name="far"} 0.0' in http.get("/metrics").text


def test_an_upstream_that_fails_again_and_again_is_left_alone_until_it_is_back() -> None:
    options = {"breaker_failures": 3, "breaker_open_s": 1.0}
    with (
        hostile(answer(500), answer(500), answer(500), GOOD) as server,
        front(far(server.url, **options)) as http,
    ):
        for _ in range(3):
            assert ask(http).status_code == 502
        response = ask(http)
        assert response.status_code == 503
        assert "left alone" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) >= 1
        assert len(server.asked) == 3
        page = http.get("/metrics").text
        assert 'airi_upstream_circuit_state{model_name="far",state="open"} 1.0' in page
        assert 'airi_upstream_circuit_opened_total{model_name="far"} 1.0' in page
        time.sleep(1.0)
        assert content(ask(http)) == "Hello there"
        assert 'airi_upstream_circuit_state{model_name="far",state="closed"} 1.0' in http.get("/metrics").text


CUT = STREAM.replace(b"connection", b"content-length: 9999\r\nconnection") + chunk("Hel")


@pytest.mark.parametrize(
    ("says", "outcome"),
    [
        (CUT, "broken"),
        (STREAM + chunk("Hel"), "broken"),
        (STREAM + chunk("Hel") + DONE, "broken"),
        (STREAM + chunk("Hel") + b"data: {oops\n\n", "garbage"),
        (STREAM + chunk("Hel") + chunk("x", index=5), "garbage"),
    ],
    ids=["a cut body", "it hangs up", "it says done", "garbage", "another choice"],
)
def test_an_upstream_that_always_ends_in_the_middle_is_left_alone(says: bytes, outcome: str) -> None:
    with hostile(says) as server, front(far(server.url, breaker_failures=3, breaker_open_s=0.5)) as http:
        for _ in range(3):
            assert ask(http).status_code == 502
        assert "left alone" in ask(http).json()["error"]["message"]
        attempts = f'airi_upstream_attempts_total{{model_name="far",outcome="{outcome}"}} 3.0'
        assert attempts in http.get("/metrics").text
        time.sleep(0.5)
        assert ask(http).status_code == 502  # the probe begins well
        assert "left alone" in ask(http).json()["error"]["message"]
        assert len(server.asked) == 4


def test_an_answer_that_is_whole_is_good_whatever_comes_behind_it() -> None:
    whole = CUT + chunk(finish="stop")
    with hostile(whole) as server, front(far(server.url, breaker_failures=1)) as http:
        assert [content(ask(http)) for _ in range(2)] == ["Hel", "Hel"]


def test_a_client_that_hangs_up_ends_the_call_there() -> None:
    script = says(STREAM + chunk("Hello"), hangs=True)
    with hostile(script) as server, front(far(server.url)) as http:
        with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
            next(response.iter_lines())
        assert server.hung_up.wait(30)


def test_a_client_that_hangs_up_before_anything_came_ends_the_call_there() -> None:
    with hostile(says(hangs=True)) as server, front(far(server.url)) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=CHAT, timeout=1.0)
        assert server.hung_up.wait(30)


def test_words_of_a_refusal_are_one_line_without_the_key() -> None:
    words = {"error": {"message": "bad\n key sk-far-secret " + "x" * 999, "param": "n", "code": "bad_n"}}
    refusal = answer(400, json.dumps(words).encode())
    with hostile(refusal) as server, front(far(server.url, api_key="sk-far-secret")) as http:
        error = ask(http).json()["error"]
        assert error["message"].startswith("the upstream of far refuses the request: bad key *** xxx")
        assert "\n" not in error["message"]
        assert len(error["message"]) < 500
        assert (error["param"], error["code"]) == ("n", "bad_n")
        assert "authorization: bearer sk-far-secret" in server.asked[0].head.lower()


@pytest.mark.parametrize("room", [380, 390, 1590])
def test_no_field_of_a_refusal_has_the_key_or_the_half_of_it(room: int) -> None:
    key = "sk-SECRETSECRETSECRETSECRET"
    words = {"error": {"message": f"{'x' * room} {key}", "param": key, "code": f"{'y' * 90}{key}"}}
    refusal = answer(400, json.dumps(words).replace("SECRET", "S\\u0045CRET").encode())
    with hostile(refusal) as server, front(far(server.url, api_key=key)) as http:
        error = ask(http).json()["error"]
        assert "SECR" not in json.dumps(error)
        assert (error["param"], error["code"]) == ("***", "y" * 90 + "***")


def test_what_is_sent_is_what_was_given_and_nothing_of_the_gateway() -> None:
    with hostile(GOOD) as server, front(far(server.url)) as http:
        ask(http, temperature=0.5, priority=0, metadata={"a": "b"}, stop=["x"], top_k=3, seed=7)
    assert server.asked[0].body == {
        "model": "tiny",
        "messages": CHAT["messages"],
        "max_tokens": 8,
        "temperature": 0.5,
        "stop": ["x"],
        "top_k": 3,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_lines_may_end_in_any_way_and_events_come_in_any_pieces() -> None:
    stream = GOOD.removeprefix(STREAM).replace(b"\n", b"\r\n")
    pieces = [STREAM, *(stream[i : i + 1] for i in range(len(stream)))]
    with hostile(says(*pieces)) as server, front(far(server.url)) as http:
        assert content(ask(http)) == "Hello there"


def test_an_end_without_done_or_usage_is_an_end() -> None:
    with hostile(STREAM + chunk("Hello") + chunk(finish="length")) as server, front(far(server.url)) as http:
        body = ask(http).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == len("Hello")  # each byte counts, as nobody has counted


def test_counts_that_cannot_be_are_not_believed() -> None:
    script = STREAM + chunk("Hello") + chunk(finish="stop") + usage(2**39, 2**39) + DONE
    with hostile(script) as server, front(far(server.url)) as http:
        assert ask(http).json()["usage"]["total_tokens"] == 2 * 512


def test_no_connection_is_left_open_and_kept_ones_are_used_again() -> None:
    kept = STREAM.replace(b"connection: close", b"transfer-encoding: chunked")
    body = GOOD.removeprefix(STREAM)
    ports: set[str] = set()
    lock = threading.Lock()

    def say(connection: Connection) -> None:
        while True:
            with lock:
                ports.add(str(connection.socket.getpeername()))
            connection.send(kept + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            data = b""
            while not data.endswith(b"}"):
                part = connection.socket.recv(65536)
                if not part:
                    return
                data += part

    with hostile(say) as server, front(far(server.url)) as http:
        for _ in range(5):
            assert content(ask(http)) == "Hello there"
    assert len(ports) == 1


def calls(*deltas: dict[str, Any], finish: str = "tool_calls") -> bytes:
    """A stream of deltas of calls."""
    parts = [event({"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]}) for delta in deltas]
    return STREAM + chunk("Well. ") + b"".join(parts) + chunk(finish=finish) + DONE


def call(index: int, arguments: str, name: str | None = None, id: str | None = None) -> dict[str, Any]:
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("look", "other")]
TWO = [("look", '{"city": "Köln"}'), ("other", "{}")]
CALLS: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "in pieces": (
        calls(call(0, "", "look", "a"), call(0, '{"city": '), call(0, '"Köln"}'), call(1, "", "other", "b")),
        TWO,
    ),
    "of one index": (calls(call(0, TWO[0][1], "look", "a"), call(0, "{}", "other", "b")), TWO),
    "cut": (calls(call(0, '{"city": "K', "look", "a"), finish="length"), [("look", '{"city": "K')]),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_calls_of_tools_come_as_they_are(name: str, stream: bool) -> None:  # noqa: FBT001
    script, expected = CALLS[name]
    with hostile(script) as server, front(far(server.url)) as http:
        response = ask(http, tools=TOOLS, stream=stream)
        if stream:
            found = [["", ""], ["", ""]]
            for delta in (c["choices"][0]["delta"] for c in events(response.text) if c["choices"]):
                for each in delta.get("tool_calls", ()):
                    found[each["index"]][0] += each["function"].get("name", "")
                    found[each["index"]][1] += each["function"]["arguments"]
            assert [(a, b) for a, b in found if a] == expected
            return
        message = response.json()["choices"][0]["message"]
        assert message["content"] == "Well."
        told = [(each["function"]["name"], each["function"]["arguments"]) for each in message["tool_calls"]]
        assert told == expected
        assert server.asked[0].body["tools"] == TOOLS
        used = http.post(
            "/v1/messages",
            json={
                "model": "far",
                "messages": CHAT["messages"],
                "max_tokens": 9,
                "tools": [{"name": "look", "input_schema": {}}],
            },
        ).json()
        assert [block["type"] for block in used["content"]] == ["text", *["tool_use"] * len(expected)]


@pytest.mark.parametrize(
    "deltas",
    [
        [call(0, "{}")],
        [call(0, "[1]", "look", "a")],
        [call(1, "{}", "look", "a"), call(0, "{}", "other", "b"), call(0, "x")],
    ],
    ids=["no name", "no object", "behind"],
)
def test_calls_that_cannot_be_are_an_error(deltas: list[dict[str, Any]]) -> None:
    with hostile(calls(*deltas)) as server, front(far(server.url)) as http:
        response = ask(http, tools=TOOLS)
        assert response.status_code == 502
        assert "a call of a tool" in response.json()["error"]["message"]
