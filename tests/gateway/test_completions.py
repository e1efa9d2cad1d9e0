"""Completions over HTTP: every form of prompt, echo, logprobs, batches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airi.text import Tokenizer

from .conftest import ANSWER, Gateway, StartGateway, events

PROMPT = "What is it for?"


def ask(gateway: Gateway, **body: Any) -> dict[str, Any]:
    response = gateway.http.post("/v1/completions", json={"model": "tiny", **body})
    assert response.status_code == 200, response.text
    done: dict[str, Any] = response.json()
    return done


def test_the_official_client_completes(gateway: Gateway) -> None:
    done = gateway.openai.completions.create(model="tiny", prompt=PROMPT, max_tokens=4, n=2, seed=1)
    assert done.object == "text_completion"
    assert len(done.choices) == 2
    assert ANSWER.startswith(done.choices[0].text)


@pytest.mark.parametrize("form", ["text", "ids", "texts", "lists of ids"])
def test_every_form_of_prompt_is_the_same_prompt(gateway: Gateway, tokenizer: Tokenizer, form: str) -> None:
    ids = tokenizer.encode(PROMPT)
    prompt = {"text": PROMPT, "ids": ids, "texts": [PROMPT], "lists of ids": [ids]}[form]
    done = ask(gateway, prompt=prompt, max_tokens=3)
    assert done["usage"]["prompt_tokens"] == len(ids)
    assert len(done["choices"]) == 1


def test_a_batch_numbers_its_choices_prompt_by_prompt(gateway: Gateway, tokenizer: Tokenizer) -> None:
    prompts = ["a", "What is", PROMPT]
    done = ask(gateway, prompt=prompts, max_tokens=2, n=2, echo=True)
    assert [c["index"] for c in done["choices"]] == list(range(6))
    for choice in done["choices"]:
        assert choice["text"].startswith(prompts[choice["index"] // 2])
    assert done["usage"]["prompt_tokens"] == sum(len(tokenizer.encode(p)) for p in prompts)
    assert done["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(("prompts", "inline"), [(["is it " * 20] * 3, True), (["is it " * 20] * 64, False)])
def test_a_batch_that_is_long_as_a_whole_is_not_tokenised_on_the_event_loop(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, prompts: list[str], *, inline: bool
) -> None:
    on_loop = watch(monkeypatch, "encode")
    ask(gateway, prompt=prompts, max_tokens=1)
    assert on_loop == [inline] * len(prompts)


def test_the_strings_of_many_tokens_are_not_made_on_the_event_loop(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop = watch(monkeypatch, "token_text")
    monkeypatch.setattr("airi.gateway.prompts._INLINE_CHARACTERS", 100)
    body = {"prompt": ANSWER * 20, "return_token_strs": True}
    made = gateway.http.post("/tokenize", json=body).json()
    assert "".join(made["token_strs"]) != ""
    assert on_loop == [False] * made["count"]


def watch(monkeypatch: pytest.MonkeyPatch, name: str) -> list[bool]:
    """Whether each call of this method of the tokenizer came from a thread with an event loop."""
    original, on_loop = getattr(Tokenizer, name), list[bool]()

    def noted(*arguments: Any, **options: Any) -> Any:
        on_loop.append(asyncio._get_running_loop() is not None)
        return original(*arguments, **options)

    monkeypatch.setattr(Tokenizer, name, noted)
    return on_loop


def test_a_streamed_batch_joins_to_the_same_texts(gateway: Gateway) -> None:
    body = {"prompt": ["a", PROMPT], "max_tokens": 8, "echo": True, "n": 2}
    whole = ask(gateway, **body)
    response = gateway.http.post("/v1/completions", json={"model": "tiny", **body, "stream": True})
    texts = [""] * 4
    for event in events(response.text):
        choice = event["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert texts == [c["text"] for c in whole["choices"]]


def test_echo_with_logprobs_scores_the_prompt(gateway: Gateway, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    done = ask(gateway, prompt=PROMPT, max_tokens=3, echo=True, logprobs=2)
    choice = done["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 3
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"].startswith(token, offset)


def test_echo_of_ids_shows_their_text(gateway: Gateway, tokenizer: Tokenizer) -> None:
    done = ask(gateway, prompt=tokenizer.encode(PROMPT), max_tokens=1, echo=True)
    assert done["choices"][0]["text"].startswith(PROMPT)


def test_logprobs_of_a_stream_are_those_of_the_whole(gateway: Gateway) -> None:
    body = {"prompt": PROMPT, "max_tokens": 20, "logprobs": 1, "echo": True}
    whole = ask(gateway, **body)["choices"][0]["logprobs"]
    response = gateway.http.post("/v1/completions", json={"model": "tiny", **body, "stream": True})
    parts = [e["choices"][0]["logprobs"] for e in events(response.text) if e["choices"][0]["logprobs"]]
    for key in ("tokens", "token_logprobs", "text_offset"):
        assert [value for part in parts for value in part[key]] == whole[key]


def test_logprobs_end_where_a_stop_string_begins(gateway: Gateway) -> None:
    choice = ask(gateway, prompt=PROMPT, stop="there", logprobs=0)["choices"][0]
    assert choice["text"] == ANSWER[: ANSWER.index("there")]
    assert "".join(choice["logprobs"]["tokens"]).startswith(choice["text"])
    assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])


def test_stop_strings_count_only_after_min_tokens(start_gateway: StartGateway, tokenizer: Tokenizer) -> None:
    gateway = start_gateway(answer="stop more ")
    first = ask(gateway, prompt="a", stop="stop")["choices"][0]["text"]
    later = ask(gateway, prompt="a", stop="stop", min_tokens=8)["choices"][0]["text"]
    assert first == ""
    assert later.startswith("stop more ")
    assert later != first


def test_ignore_eos_goes_on(start_gateway: StartGateway) -> None:
    gateway = start_gateway(stop_after=3)
    stopped = ask(gateway, prompt="a", max_tokens=9)
    forced = ask(gateway, prompt="a", max_tokens=9, ignore_eos=True)
    assert (stopped["choices"][0]["finish_reason"], stopped["usage"]["completion_tokens"]) == ("stop", 3)
    assert (forced["choices"][0]["finish_reason"], forced["usage"]["completion_tokens"]) == ("length", 9)


def test_tokenize_and_detokenize_are_inverse(gateway: Gateway, tokenizer: Tokenizer) -> None:
    for prefix in ("", "/v1"):
        made = gateway.http.post(f"{prefix}/tokenize", json={"model": "tiny", "prompt": ANSWER}).json()
        assert made["tokens"] == tokenizer.encode(ANSWER)
        assert made["count"] == len(made["tokens"])
        assert "token_strs" not in made
        body = {"model": "tiny", "tokens": made["tokens"]}
        assert gateway.http.post(f"{prefix}/detokenize", json=body).json() == {"prompt": ANSWER}


def test_tokenize_takes_texts_beyond_the_window(gateway: Gateway, tokenizer: Tokenizer) -> None:
    text = ANSWER * 100
    made = gateway.http.post("/tokenize", json={"prompt": text}).json()
    assert made["tokens"] == tokenizer.encode(text)
    assert made["count"] > made["max_model_len"]


def test_tokenize_renders_chats(gateway: Gateway, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "What"}]
    body = {"messages": messages, "return_token_strs": True}
    made = gateway.http.post("/tokenize", json=body).json()
    assert made["tokens"] == tokenizer.encode_chat(messages)
    assert "".join(made["token_strs"]) == tokenizer.render_chat(messages)


def test_models_lists_names_and_aliases(gateway: Gateway) -> None:
    assert [m.id for m in gateway.openai.models.list()] == ["tiny", "tiny-alias"]
    model = gateway.openai.models.retrieve("tiny-alias")
    assert model.id == "tiny-alias"
    assert model.object == "model"
    assert gateway.http.get("/v1/models/tiny-alias").json()["root"] == "tiny"
