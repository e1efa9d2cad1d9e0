"""Every wrong request gets one clear OpenAI error, never a 5xx, a hang or a guess."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from airi.gateway.options import AppOptions
from airi.text import Tokenizer

from .conftest import WINDOW, Gateway, StartGateway

TOOLS = [{"type": "function", "function": {"name": "f"}}]
MESSAGES = [{"role": "user", "content": "What is it?"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "What", "max_tokens": 4}


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object of a refusal, checked for its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"model": None}, "model", "model: is missing"),
        ({"messages": None}, "messages", "messages: is missing"),
        (
            {"messages": [{"role": "nobody", "content": "x"}]},
            "messages[0].role",
            "messages[0].role: 'nobody' is not accepted; accepted: assistant, developer, function, system, tool, user",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is missing"),
        (
            {"tool_choice": "y" * 300},
            "tool_choice",
            f"tool_choice: '{'y' * 60}' is not accepted; accepted: auto, none, required",
        ),
        (
            {"response_format": {"type": "yaml"}},
            "response_format.type",
            "response_format.type: 'yaml' is not accepted; accepted: text, json_object, json_schema",
        ),
        (
            {"response_format": {}},
            "response_format.type",
            "is missing; accepted: text, json_object, json_schema",
        ),
    ],
)
def test_what_is_missing_or_cannot_be_is_named_with_what_is_accepted(
    gateway: Gateway, change: dict[str, Any], param: str, says: str
) -> None:
    body = {name: value for name, value in (CHAT | change).items() if value is not None}
    error = refused(gateway.http.post("/v1/chat/completions", json=body))
    assert error["param"] == param
    assert error["message"].endswith(says)


def test_a_number_is_repeated_in_short(gateway: Gateway) -> None:
    body = json.dumps(CHAT).replace('"max_tokens": 4', f'"max_tokens": {"1" * 400}')
    error = refused(gateway.http.post("/v1/chat/completions", content=body))
    assert error["message"] == f"max_tokens: expected `int` <= 2147483647, got {'1' * 60}"


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("chat/completions", {"max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"max_tokens": -5}, "max_tokens"),
        ("chat/completions", {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("chat/completions", {"temperature": -1}, "temperature"),
        ("chat/completions", {"temperature": "hot"}, "temperature"),
        ("chat/completions", {"top_p": 0}, "top_p"),
        ("chat/completions", {"top_p": 1.5}, "top_p"),
        ("chat/completions", {"min_p": 2}, "min_p"),
        ("chat/completions", {"top_k": -2}, "top_k"),
        ("chat/completions", {"n": 0}, "n"),
        ("chat/completions", {"n": 1000}, "n"),
        ("chat/completions", {"presence_penalty": 3}, "presence_penalty"),
        ("chat/completions", {"frequency_penalty": -3}, "frequency_penalty"),
        ("chat/completions", {"repetition_penalty": 0}, "repetition_penalty"),
        ("chat/completions", {"repetition_penalty": 1e-40}, "repetition_penalty"),
        ("completions", {"repetition_penalty": 1e-50}, "repetition_penalty"),
        ("completions", {"priority": 9}, "priority"),
        ("completions", {"cache_salt": ""}, "cache_salt"),
        ("chat/completions", {"priority": -9}, "priority"),
        ("chat/completions", {"logit_bias": {"word": 1}}, "logit_bias"),
        ("chat/completions", {"logit_bias": {"999999": 1}}, "logit_bias"),
        ("chat/completions", {"stop": ""}, "stop"),
        ("chat/completions", {"stop": ["x", 1]}, "stop[1]"),
        ("chat/completions", {"seed": 2**70}, "seed"),
        ("chat/completions", {"min_tokens": 5}, "min_tokens"),
        ("chat/completions", {"stream": "yes"}, "stream"),
        ("chat/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("chat/completions", {"top_logprobs": 3}, "top_logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": "hi"}, "messages"),
        ("chat/completions", {"messages": [{"content": "hi"}]}, "messages[0].role"),
        ("chat/completions", {"messages": [{"role": "alien", "content": "hi"}]}, "messages[0].role"),
        (
            "chat/completions",
            {"messages": [*MESSAGES, {"role": "user", "content": 5}]},
            "messages[1].content",
        ),
        ("chat/completions", {"messages": [{"role": "function", "content": "hi"}]}, "messages"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
        ),
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools[0].function"),
        ("chat/completions", {"tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (
            "chat/completions",
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        ("chat/completions", {"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ("chat/completions", {"tools": TOOLS, "guided_regex": "a"}, "guided_regex"),
        ("chat/completions", {"response_format": {"type": "xml"}}, "response_format.type"),
        ("chat/completions", {"response_format": {}}, "response_format.type"),
        (
            "chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.name",
        ),
        (
            "chat/completions",
            {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
            "response_format",
        ),
        ("chat/completions", {"functions": [{"name": "f"}]}, "functions"),
        ("chat/completions", {"guided_json": 5}, "guided_json"),
        ("chat/completions", {"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        ("chat/completions", {"guided_choice": []}, "guided_choice"),
        ("chat/completions", {"guided_choice": ["a", ""]}, "guided_choice[1]"),
        ("chat/completions", {"guided_regex": ""}, "guided_regex"),
        ("chat/completions", {"structured_outputs": {}}, "structured_outputs"),
        (
            "chat/completions",
            {"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
        ),
        ("completions", {"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
        ("chat/completions", {"chat_template": "{{ messages }}"}, "chat_template"),
        ("chat/completions", {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ("chat/completions", {"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs"),
        ("chat/completions", {"modalities": ["audio"]}, "modalities[0]"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": {"text": "x"}}, "prompt"),
        ("completions", {"prompt": ["a", 1]}, "prompt"),
        ("completions", {"prompt": [[1], "a"]}, "prompt"),
        ("completions", {"prompt": [1, -1]}, "prompt[1]"),
        ("completions", {"prompt": [1, 10**6]}, "prompt"),
        ("completions", {"prompt": [1] * (WINDOW - 3)}, "prompt"),
        ("completions", {"prompt": ["a"] * 100, "n": 100}, "prompt"),
        ("completions", {"max_tokens": WINDOW}, "prompt"),
        ("completions", {"logprobs": -1}, "logprobs"),
        ("completions", {"best_of": 2}, "best_of"),
        ("completions", {"suffix": "end"}, "suffix"),
    ],
)
def test_a_wrong_field_is_named(gateway: Gateway, path: str, change: dict[str, Any], param: str) -> None:
    body = {**(CHAT if path.startswith("chat") else TEXT), **change}
    error = refused(gateway.http.post(f"/v1/{path}", json=body))
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.split("[")[0] in error["message"]


def test_a_wrong_number_is_repeated_and_a_wrong_text_is_not(gateway: Gateway) -> None:
    number = refused(gateway.http.post("/v1/chat/completions", json={**CHAT, "temperature": -1}))
    assert "-1" in number["message"]
    secret = {**CHAT, "messages": [{"role": "user", "content": {"secret": "swordfish"}}]}
    assert "swordfish" not in refused(gateway.http.post("/v1/chat/completions", json=secret))["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"not json", b'"text"', b"\xff\xfe", b'{"model": "\xff"}']
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_a_body_that_is_no_request_gets_a_400(gateway: Gateway, path: str, body: bytes) -> None:
    refused(gateway.http.post(path, content=body, headers={"content-type": "application/json"}))


def test_deeply_nested_json_gets_a_400(gateway: Gateway) -> None:
    body = b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    refused(gateway.http.post("/v1/chat/completions", content=body))
    deep: Any = "x"
    for _ in range(900):
        deep = {"a": deep}
    nested = {**CHAT, "chat_template_kwargs": {"style": deep}}
    assert gateway.http.post("/v1/chat/completions", json=nested).status_code in (200, 400)


@pytest.mark.parametrize("name", ["template", "chat_template_kwargs", "self", "not a name"])
def test_a_template_variable_may_have_any_name(gateway: Gateway, name: str) -> None:
    body = {**CHAT, "chat_template_kwargs": {name: 5}}
    assert gateway.http.post("/v1/chat/completions", json=body).status_code == 200


def test_half_a_surrogate_pair_is_no_reason_to_fail(gateway: Gateway) -> None:
    body = b'{"model": "tiny", "prompt": "a\\ud800b", "max_tokens": 1}'
    assert gateway.http.post("/v1/completions", content=body).status_code in (200, 400)


def test_an_unknown_model_is_a_404_that_lists_what_is_served(gateway: Gateway) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT), ("/tokenize", TEXT)):
        error = refused(gateway.http.post(path, json={**body, "model": "nope"}), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "tiny-alias" in error["message"]
    refused(gateway.http.get("/v1/models/nope"), 404)
    refused(gateway.http.get("/v1/models/a/b%2Fc"), 404)
    with pytest.raises(openai.NotFoundError):
        gateway.openai.models.retrieve("nope")


def test_unknown_routes_and_methods_have_error_bodies(gateway: Gateway) -> None:
    assert refused(gateway.http.get("/nothing"), 404)["code"] == "unknown_route"
    assert refused(gateway.http.get("/health/"), 404)["code"] == "unknown_route"
    response = gateway.http.get("/v1/chat/completions")
    assert refused(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    refused(gateway.http.delete("/v1/models/tiny"), 405)


def test_a_prompt_beyond_the_window_names_both_sizes(gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        gateway.openai.completions.create(model="tiny", prompt="x " * 5000, max_tokens=4)
    assert raised.value.code == "context_length_exceeded"
    assert str(WINDOW) in raised.value.message


def test_a_prompt_of_ten_megabytes_is_refused_without_tokenising_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "The quick brown fox. " * 500_000
    encode, lengths = Tokenizer.encode, list[int]()

    def counted(self: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
        lengths.append(len(text))
        return encode(self, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    error = refused(gateway.http.post("/v1/completions", json={**TEXT, "prompt": text}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    chat = {**CHAT, "messages": [{"role": "user", "content": text}]}
    error = refused(gateway.http.post("/v1/chat/completions", json=chat))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    error = refused(gateway.http.post("/tokenize", json={**TEXT, "prompt": text}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    error = refused(gateway.http.post("/tokenize", json=chat))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert 0 < sum(lengths) < len(text) / 100


def test_a_body_beyond_the_limit_is_a_413(start_gateway: StartGateway) -> None:
    gateway = start_gateway(app=AppOptions(body_limit=1000))
    big = json.dumps({**TEXT, "prompt": "x" * 2000}).encode()
    assert refused(gateway.http.post("/v1/completions", content=big), 413)["code"] == "request_too_large"

    def chunks() -> Any:
        for _ in range(100):
            yield b" " * 100

    refused(gateway.http.post("/v1/completions", content=chunks()), 413)
    assert gateway.http.post("/v1/completions", json=TEXT).status_code == 200


def test_a_full_queue_is_a_429_with_retry_after(start_gateway: StartGateway) -> None:
    gateway = start_gateway(max_queued=0)
    for stream in (False, True):
        response = gateway.http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        error = refused(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert int(response.headers["retry-after"]) >= 1
    with pytest.raises(openai.RateLimitError):
        gateway.openai.completions.create(model="tiny", prompt="a")


def test_detokenize_refuses_ids_outside_the_vocabulary(gateway: Gateway) -> None:
    assert refused(gateway.http.post("/detokenize", json={"tokens": [10**6]}))["param"] == "tokens"
    assert refused(gateway.http.post("/detokenize", json={"tokens": [-1]}))["param"] == "tokens[0]"


def test_detokenize_refuses_more_tokens_than_the_window_takes(gateway: Gateway) -> None:
    assert gateway.http.post("/detokenize", json={"tokens": [9] * WINDOW}).status_code == 200
    error = refused(gateway.http.post("/detokenize", json={"tokens": [9] * (WINDOW + 1)}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "tokens")
    assert error["message"] == "tokens: has 513 token ids; this model's maximum context length is 512 tokens"


def test_a_text_of_twice_the_window_is_still_counted(gateway: Gateway) -> None:
    response = gateway.http.post("/tokenize", json={"prompt": "Hello there! " * WINDOW})
    assert response.json()["count"] > 2 * WINDOW


def test_tokenize_wants_one_of_prompt_and_messages(gateway: Gateway) -> None:
    refused(gateway.http.post("/tokenize", json={"model": "tiny"}))
    refused(gateway.http.post("/tokenize", json={"prompt": "a", "messages": MESSAGES}))


def test_fields_nobody_knows_are_ignored(gateway: Gateway) -> None:
    body = {
        **CHAT,
        "store": True,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "user": "u",
        "metadata": {},
    }
    assert gateway.http.post("/v1/chat/completions", json=body).status_code == 200
