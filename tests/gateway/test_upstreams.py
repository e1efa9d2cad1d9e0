"""Models of another server, which is AIRI itself: all ways to ask, limits, rules, what is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airi.text import Tokenizer

from .conftest import ANSWER, Gateway, StartGateway, events, starter
from .upstream import CHAT, ask, content, far, front


@pytest.fixture(scope="module")
def behind(
    model_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """The other server."""
    with starter(model_folder, tokenizer, tmp_path_factory.mktemp("behind")) as start:
        yield start()


@pytest.fixture(scope="module")
def http(behind: Gateway) -> Iterator[httpx.Client]:
    """Of the gateway before it."""
    with front(far(f"{behind.url}/v1")) as client:
        yield client


def direct(behind: Gateway, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the other server says itself."""
    response = behind.http.post(path, json=body | {"model": "tiny"})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_chat_is_answered_as_the_other_server_does(http: httpx.Client, behind: Gateway) -> None:
    told, expected = ask(http).json(), direct(behind, "/v1/chat/completions", CHAT)
    assert told["choices"] == expected["choices"]
    assert told["usage"] == expected["usage"]
    assert told["model"] == "far"


def test_it_is_called_by_its_aliases_too_and_is_the_first_model(http: httpx.Client) -> None:
    assert content(ask(http, model="far-alias"))
    listed = http.get("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["far", "far-alias"]
    assert listed[0]["max_model_len"] == 512


def test_a_stream_passes_as_it_comes(http: httpx.Client, behind: Gateway) -> None:
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    told = events(http.post("/v1/chat/completions", json=body).text)
    expected = events(behind.http.post("/v1/chat/completions", json=body | {"model": "tiny"}).text)

    def essence(chunks: list[dict[str, Any]]) -> list[Any]:
        return [(chunk["choices"], chunk.get("usage")) for chunk in chunks]

    assert essence(told) == essence(expected)


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_told_apart(http: httpx.Client, stream: bool) -> None:  # noqa: FBT001
    response = ask(http, n=3, stream=stream)
    if not stream:
        choices = response.json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        assert len({choice["message"]["content"] for choice in choices}) == 1
        assert response.json()["usage"]["completion_tokens"] == 24
        return
    texts = ["", "", ""]
    for told in events(response.text):
        for choice in told["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert len(set(texts)) == 1
    assert texts[0]


def test_completions_of_several_prompts(http: httpx.Client, behind: Gateway) -> None:
    body = {"model": "far", "prompt": ["Hi", "Ho there"], "n": 2, "max_tokens": 5}
    told, expected = http.post("/v1/completions", json=body).json(), direct(behind, "/v1/completions", body)
    assert told["choices"] == expected["choices"]
    assert told["usage"] == expected["usage"]


def test_responses_and_messages_go_the_same_way(http: httpx.Client, behind: Gateway) -> None:
    asked = {"model": "far", "input": "Hi", "max_output_tokens": 8}
    told, expected = http.post("/v1/responses", json=asked).json(), direct(behind, "/v1/responses", asked)
    assert told["output"][0]["content"] == expected["output"][0]["content"]
    assert (told["status"], told["usage"]) == (expected["status"], expected["usage"])
    asked = {"model": "far", "messages": CHAT["messages"], "max_tokens": 8}
    told, expected = http.post("/v1/messages", json=asked).json(), direct(behind, "/v1/messages", asked)
    for field in ("content", "stop_reason", "usage"):
        assert told[field] == expected[field]


def test_a_stop_string_is_found_there_and_told_here(http: httpx.Client) -> None:
    assert content(ask(http, stop=["there"])) == "Hello "
    asked = {"model": "far", "messages": CHAT["messages"], "max_tokens": 50, "stop_sequences": ["there"]}
    assert http.post("/v1/messages", json=asked).json()["content"] == [{"type": "text", "text": "Hello "}]


def test_what_the_other_server_refuses_is_told_with_its_reason(http: httpx.Client) -> None:
    refused = ask(http, temperature=2, max_tokens=5000)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert "the upstream of far refuses the request" in error["message"]
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize(
    ("path", "changes", "field"),
    [
        ("/v1/completions", {"logprobs": 1}, "logprobs"),
        ("/v1/completions", {"echo": True}, "echo"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt"),
        ("/tokenize", {}, "model"),
        ("/v1/messages/count_tokens", {}, "model"),
    ],
)
def test_what_cannot_be_promised_is_refused(
    http: httpx.Client, path: str, changes: dict[str, Any], field: str
) -> None:
    body: dict[str, Any] = {"model": "far"} | ({"prompt": "Hi"} if "chat" not in path else CHAT)
    if path.endswith("count_tokens"):
        body = {"model": "far", "messages": CHAT["messages"]}
    response = http.post(path, json=body | changes)
    assert response.status_code == 400
    error = response.json()["error"]
    assert "another server" in error["message"]
    assert error.get("param", field) == field


def test_a_prompt_that_no_window_takes_is_not_sent(http: httpx.Client, behind: Gateway) -> None:
    before = behind.stub.num_requests
    long = "x" * 20_000
    for path, body in (
        ("/v1/completions", {"model": "far", "prompt": long}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": long}]}),
    ):
        response = http.post(path, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert behind.stub.num_requests == before


def test_models_of_an_engine_and_of_another_server_stand_side_by_side(
    start_gateway: StartGateway, behind: Gateway
) -> None:
    own = start_gateway(answer="I am here. ")
    endpoint = own.stub.server.endpoint
    with front(far(f"{behind.url}/v1"), endpoint=endpoint) as http:
        assert [each["id"] for each in http.get("/v1/models").json()["data"]][:2] == ["far", "far-alias"]
        assert ANSWER.startswith(content(ask(http))[:5])
        assert content(ask(http, model="tiny")).startswith("I am here")
        assert http.get("/ready").json() == {"status": "ok", "upstreams": {"far": "up"}}
