"""Content rules over HTTP: prompts before anything is spent on them, answers as they stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airi.text import Tokenizer

from .calling import HERMES
from .conftest import Gateway, StartGateway, events, starter, wait_until
from .content import ALL, AUDIT_NUMBERS, BLOCK_CARDS, CARD, REDACT_MAIL, TELL_BIRDS, ruled
from .test_tool_calls import TOOLS

ANSWER = "Owl 7 wrote to me@example.org. "
TOLD = {
    "mail": {"filtered": True, "detected": True, "matches": {"email": 1}},
    "birds": {"filtered": False, "detected": True, "matches": {"words[1]": 1}},
}


def chat(gateway: Gateway, content: Any = "Hi", **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 64} | fields
    return gateway.http.post("/v1/chat/completions", json=body)


def complete(gateway: Gateway, prompt: Any, **fields: Any) -> Any:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 64} | fields
    return gateway.http.post("/v1/completions", json=body)


def length(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture(scope="module")
def all_rules(
    model_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    with starter(model_folder, tokenizer, tmp_path_factory.mktemp("strict")) as start:
        yield start(govern=ruled(input=ALL))


@pytest.fixture
def strict(all_rules: Gateway) -> Gateway:
    """All rules for prompts; nothing was asked yet."""
    all_rules.stub.num_requests = 0
    return all_rules


ARGUMENTS = json.dumps({"card": [CARD]}).replace(" 1", "\\u00201")
TOOL = {"type": "function", "function": {"name": "pay", "description": "Pays."}}
PLACES: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "user", "content": f"It is {CARD}"}]}, "messages[0].content"),
    (
        {"messages": [{"role": "system", "content": "x"}, {"role": "tool", "content": CARD}]},
        "messages[1].content",
    ),
    ({"messages": [{"role": "user", "content": "x", "name": CARD}]}, "messages[0].name"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": CARD}]}
            ]
        },
        "messages[0].content[1].text",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": t} for t in (CARD[:7], CARD[7:])]}
            ]
        },
        "messages[0].content",
    ),
    (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "pay", "arguments": ARGUMENTS}}]}
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "reasoning_content": CARD}]},
        "messages[0].reasoning_content",
    ),
    ({"messages": [{"role": "user", "content": "x", CARD: 1}]}, "messages[0]"),
    (
        {"tools": [{"type": "function", "function": {"name": "pay", "description": CARD}}]},
        "tools[0].function.description",
    ),
    (
        {"tools": [TOOL | {"function": {"name": "pay", "parameters": {"properties": {CARD: {}}}}}]},
        "tools[0].function.parameters",
    ),
    (
        {"tools": [TOOL | {"function": {"name": "pay", "parameters": {"default": 4111111111111111}}}]},
        "tools[0].function.parameters",
    ),
    ({"documents": [{"text": CARD}]}, "documents[0].text"),
    ({"chat_template_kwargs": {"style": CARD}}, "chat_template_kwargs"),
]


@pytest.mark.parametrize(("fields", "param"), PLACES, ids=[param for _, param in PLACES])
def test_a_prompt_is_refused_by_the_field_that_is_blocked(
    strict: Gateway, fields: dict[str, Any], param: str
) -> None:
    response = chat(strict, **fields)
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": f"{param}: is refused by content rule 'no-cards'",
        "type": "invalid_request_error",
        "param": param,
        "code": "content_filter",
    }
    assert strict.stub.num_requests == 0


def test_no_match_spans_two_messages(strict: Gateway) -> None:
    parts = [{"role": "user", "content": CARD[:7]}, {"role": "user", "content": CARD[7:]}]
    assert chat(strict, messages=parts).status_code == 200


@pytest.mark.parametrize(
    ("prompt", "param"), [(f"It is {CARD}", "prompt"), (["x", CARD], "prompt[1]"), ("ids", "prompt")]
)
def test_a_completion_is_refused_whether_of_text_or_of_token_ids(
    strict: Gateway, tokenizer: Tokenizer, prompt: Any, param: str
) -> None:
    given = tokenizer.encode(CARD, add_special_tokens=False) if prompt == "ids" else prompt
    error = complete(strict, given).json()["error"]
    assert (error["param"], error["code"]) == (param, "content_filter")
    assert CARD[:4] not in error["message"]
    assert strict.stub.num_requests == 0


def test_what_is_replaced_in_a_prompt_reaches_neither_the_model_nor_its_echo(
    strict: Gateway, tokenizer: Tokenizer
) -> None:
    text, clean = "Owl me@example.org ", "Owl <mail> "
    whole = complete(strict, text, echo=True, max_tokens=1).json()
    assert whole["choices"][0]["text"].startswith(clean)
    assert whole["usage"]["prompt_tokens"] == length(tokenizer, clean)
    ids = tokenizer.encode(text, add_special_tokens=False)
    again = complete(strict, ids, echo=True, max_tokens=1).json()
    assert again["choices"][0]["text"] == whole["choices"][0]["text"]
    assert again["prompt_filter_results"] == whole["prompt_filter_results"]
    assert whole["prompt_filter_results"] == [
        {
            "prompt_index": 0,
            "content_filter_results": TOLD | {"birds": TOLD["birds"]},
        }
    ]


def test_token_ids_stay_as_they_are_where_nothing_is_replaced(strict: Gateway, tokenizer: Tokenizer) -> None:
    ids = [i for character in "what is it" for i in tokenizer.encode(character, add_special_tokens=False)]
    assert len(ids) > length(tokenizer, "what is it")
    assert complete(strict, ids, max_tokens=1).json()["usage"]["prompt_tokens"] == len(ids)


def test_a_chat_with_a_replacement_is_as_long_as_one_that_says_so(strict: Gateway) -> None:
    def size(**fields: Any) -> int:
        response = chat(strict, max_tokens=1, **fields)
        assert response.status_code == 200, response.text
        return int(response.json()["usage"]["prompt_tokens"])

    def said(text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}]}

    def parts(*texts: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in texts]}]}

    assert size(**said("To me@example.org")) == size(**said("To <mail>"))
    assert size(**parts("To me@exam", "ple.org")) == size(**said("To <mail>"))
    tool = {"type": "function", "function": {"name": "send", "description": "To me@example.org"}}
    clean = {"type": "function", "function": {"name": "send", "description": "To <mail>"}}
    assert size(tools=[tool], tool_choice="none") == size(tools=[clean], tool_choice="none")


def test_a_stream_begins_with_what_was_found_in_its_prompt(strict: Gateway) -> None:
    first, *others = events(chat(strict, "An owl", stream=True).text)
    assert first["choices"] == []
    assert first["prompt_filter_results"] == [
        {"prompt_index": 0, "content_filter_results": {"birds": TOLD["birds"]}}
    ]
    assert all("prompt_filter_results" not in event for event in others)
    assert "prompt_filter_results" not in chat(strict, "4").json()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_answers_pass_the_rules_for_them(
    start_gateway: StartGateway,
    tokenizer: Tokenizer,
    stream: bool,  # noqa: FBT001
    kind: str,
) -> None:
    gateway = start_gateway(answer=ANSWER, govern=ruled(output=ALL), stop_after=length(tokenizer, ANSWER) + 1)
    ask = chat if kind == "chat" else complete
    response = ask(gateway, "Hi", n=2, stream=stream)
    if not stream:
        for choice in response.json()["choices"]:
            text = choice["message"]["content"] if kind == "chat" else choice["text"]
            assert text == "Owl 7 wrote to <mail>. "
            assert (choice["finish_reason"], choice["content_filter_results"]) == ("stop", TOLD)
        return
    texts = ["", ""]
    for event in events(response.text):
        (choice,) = event["choices"]
        texts[choice["index"]] += (choice["delta"].get("content") or "") if kind == "chat" else choice["text"]
        assert choice.get("content_filter_results") == (TOLD if choice["finish_reason"] else None)
    assert texts == ["Owl 7 wrote to <mail>. "] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_answer_ends_before_the_match_and_counts_what_was_made(
    start_gateway: StartGateway,
    tokenizer: Tokenizer,
    stream: bool,  # noqa: FBT001
) -> None:
    answer = f"It is {CARD}. And more of it, for what it is. "
    gateway = start_gateway(answer=answer, govern=ruled(output=[BLOCK_CARDS]), step_us=2000)
    client = gateway.openai.chat.completions
    ask: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400}
    if stream:
        chunks = list(client.create(**ask, stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        reason, usage = chunks[-2].choices[0].finish_reason, chunks[-1].usage
    else:
        whole = client.create(**ask)
        text, reason, usage = whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage
    assert (text, reason) == ("It is ", "content_filter")
    assert length(tokenizer, f"It is {CARD}") < usage.completion_tokens < 400
    wait_until(lambda: gateway.stub.num_running == 0, "the engine goes on with an answer that was blocked")


def test_offsets_of_logprobs_are_of_the_text_as_it_is_delivered(start_gateway: StartGateway) -> None:
    gateway = start_gateway(answer=ANSWER, govern=ruled(output=ALL))
    for stream in (False, True):
        response = complete(gateway, "Hi", echo=True, logprobs=0, max_tokens=32, stream=stream)
        whole = events(response.text) if stream else [response.json()]
        choices = [event["choices"][0] for event in whole]
        text = "".join(choice["text"] for choice in choices)
        logprobs = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        pairs = [pair for each in logprobs for pair in zip(each["tokens"], each["text_offset"], strict=True)]
        assert "<mail>" in text
        assert all(text[offset:].startswith(token) for token, offset in pairs)
        assert "@" not in "".join(token for token, _ in pairs)


@pytest.mark.parametrize(
    ("rule", "hidden"),
    [
        ({"regexes": ["[a-z]"], "action": "block"}, True),
        ({"words": ["no such"], "action": "redact"}, True),
        ({"judge": "tiny-alias", "action": "redact"}, True),
        ({"words": ["heron"], "action": "annotate"}, False),
    ],
)
def test_what_a_model_might_have_said_instead_is_hidden_where_rules_hold(
    start_gateway: StartGateway,
    rule: dict[str, Any],
    hidden: bool,  # noqa: FBT001
) -> None:
    gateway = start_gateway(
        answer="safe" if "judge" in rule else "7 8 9 10",
        stop_after=5,
        max_model_len=2048,
        govern=ruled(output=[{"name": "r", **rule}]),
    )
    whole = chat(gateway, logprobs=True, top_logprobs=3).json()["choices"][0]
    entries = whole["logprobs"]["content"]
    assert entries
    assert {len(entry["top_logprobs"]) for entry in entries} == {0 if hidden else 3}
    found = complete(gateway, "Hi you", echo=True, logprobs=3).json()["choices"][0]["logprobs"]
    first, *others = found["top_logprobs"]
    assert first is None
    assert all((len(top) == 1) == hidden for top in others)
    stream = chat(gateway, logprobs=True, top_logprobs=3, stream=True).text
    assert '"top_logprobs":[' in stream
    assert ('"top_logprobs":[{' in stream) != hidden


def test_calls_of_tools_are_found_in_what_the_rules_let_pass(
    start_gateway: StartGateway, tokenizer: Tokenizer, model_folder: Path
) -> None:
    words = {"name": "city", "words": ["Köln"], "action": "redact", "replacement": "?"}
    answer = HERMES
    gateway = start_gateway(
        answer=answer, govern=ruled(output=[words]), stop_after=length(tokenizer, answer) + 1
    )
    whole = gateway.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], tools=TOOLS, max_tokens=300
    )
    (choice,) = whole.choices
    assert "Köln" not in whole.model_dump_json()
    assert choice.finish_reason in ("tool_calls", "stop")
    assert choice.model_extra is not None
    assert choice.model_extra["content_filter_results"]["city"]["matches"] == {"words[0]": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_answers_that_are_json_stay_json(
    start_gateway: StartGateway,
    tokenizer: Tokenizer,
    stream: bool,  # noqa: FBT001
) -> None:
    answer = '{"to": "me\\u0040example.org"}'
    rule = REDACT_MAIL | {"replacement": 'x"y'}
    gateway = start_gateway(
        answer=answer, govern=ruled(output=[rule]), stop_after=length(tokenizer, answer) + 1
    )

    def text(found: Any) -> tuple[str, str]:
        chunks = events(found.text) if stream else [found.json()]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        parts = [
            (c.get("message") or c.get("delta") or c).get("content") or c.get("text", "") for c in choices
        ]
        return "".join(parts), choices[-1]["finish_reason"]

    asked = {"response_format": {"type": "json_object"}, "stream": stream}
    assert json.loads(text(chat(gateway, **asked))[0]) == {"to": 'x"y'}
    asked = {"structured_outputs": {"json": {"const": {"to": "me@example.org"}}}, "stream": stream}
    for found in (chat(gateway, **asked), complete(gateway, "Hi", **asked)):
        assert text(found) == ('{"to": "', "content_filter")


def test_matches_are_counted_and_audited_without_their_text(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    rules = [REDACT_MAIL, AUDIT_NUMBERS, TELL_BIRDS]
    gateway = start_gateway(answer=ANSWER, govern=ruled(audit, input=rules, output=rules), max_model_len=200)
    response = chat(gateway, "ask me@example.org", max_tokens=30)
    assert "numbers" not in response.text
    metrics = gateway.http.get("/metrics").text
    for side, rule, action, count in (
        ("input", "mail", "redact", 1),
        ("output", "mail", "redact", 1),
        ("output", "birds", "annotate", 1),
        ("output", "numbers", "audit", 1),
    ):
        line = (
            f'airi_content_matches_total{{action="{action}",model_name="tiny",rule="{rule}",side="{side}"}}'
        )
        (value,) = (float(each.split()[-1]) for each in metrics.splitlines() if each.startswith(line))
        assert value >= count
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    (found,) = [line for line in lines if line.get("side") == "input"]
    assert found | {"time": "", "request_id": ""} == {
        "time": "",
        "request_id": "",
        "tenant": "anyone",
        "model": "tiny",
        "side": "input",
        "where": "messages[0].content",
        "rule": "mail",
        "pattern": "email",
        "action": "redact",
        "start": 4,
        "end": 18,
    }
    assert found["request_id"] == response.headers["x-request-id"]
    assert {line["rule"] for line in lines if line.get("side") == "output"} == {"mail", "birds", "numbers"}
    assert "example" not in audit.read_text() + metrics


def test_long_texts_are_scanned_and_refused_like_short_ones(strict: Gateway) -> None:
    assert chat(strict, "x " * 5000 + CARD).json()["error"]["code"] == "content_filter"
    assert complete(strict, "x " * 5000 + CARD).json()["error"]["code"] == "content_filter"


def test_tokenising_generates_nothing_and_passes_no_rules(strict: Gateway) -> None:
    assert strict.http.post("/tokenize", json={"prompt": CARD}).status_code == 200
