"""Chat over HTTP, asked with the official client."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletionMessageParam

from airi.text import Tokenizer

from .conftest import ANSWER, Gateway, StartGateway, events

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is it?"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def length(tokenizer: Tokenizer, text: str = ANSWER) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def test_an_answer_has_the_text_the_usage_and_the_reason(gateway: Gateway, tokenizer: Tokenizer) -> None:
    count = length(tokenizer)
    done = gateway.openai.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=count)
    prompt = tokenizer.encode_chat(MESSAGES)
    assert done.choices[0].message.content == ANSWER
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].finish_reason == "length"
    assert done.object == "chat.completion"
    assert done.id.startswith("chatcmpl-")
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(prompt), count)
    assert done.usage.total_tokens == len(prompt) + count
    assert done.usage.prompt_tokens_details is not None
    assert done.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_joins_to_the_same_text(gateway: Gateway, tokenizer: Tokenizer) -> None:
    count = length(tokenizer)
    with gateway.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=count, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == count
    assert all(c.usage is None for c in chunks[:-1])


async def test_the_asyncio_client_streams_and_asks(gateway: Gateway) -> None:
    async with gateway.async_openai as client:
        done = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5)
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=5, stream=True
        )
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text == done.choices[0].message.content


def test_the_stream_helper_sees_a_whole_message(gateway: Gateway) -> None:
    with gateway.openai.chat.completions.stream(model="tiny", messages=MESSAGES, stop="there") as stream:
        kinds = {event.type for event in stream}
        done = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert done.choices[0].message.content == ANSWER[: ANSWER.index("there")]


def test_an_answer_that_ends_by_itself_stops(start_gateway: StartGateway, tokenizer: Tokenizer) -> None:
    gateway = start_gateway(stop_after=4)
    done = gateway.openai.chat.completions.create(model="tiny", messages=MESSAGES)
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.completion_tokens == 4, "the end of sequence is generated, too"
    assert done.choices[0].message.content == tokenizer.decode(tokenizer.encode(ANSWER)[:3])


def test_max_tokens_left_out_means_what_still_fits(start_gateway: StartGateway) -> None:
    gateway = start_gateway(max_model_len=64)
    done = gateway.openai.chat.completions.create(model="tiny", messages=MESSAGES)
    assert done.usage is not None
    assert done.usage.total_tokens == 64
    assert done.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_text_and_shows_only_on_request(
    gateway: Gateway, tokenizer: Tokenizer, *, stream: bool, include: bool
) -> None:
    stop = "code 🙂"
    body = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_tokens": 300,
        "stop": ["never", stop],
        "stream": stream,
        "include_stop_str_in_output": include,
    }
    response = gateway.http.post("/v1/chat/completions", json=body)
    if stream:
        seen = [c["choices"][0] for c in events(response.text)]
        text, reason = "".join(c["delta"].get("content", "") for c in seen), seen[-1]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        assert response.json()["usage"]["completion_tokens"] <= length(tokenizer)
    assert text == ANSWER[: ANSWER.index(stop)] + (stop if include else "")
    assert reason == "stop"


def test_n_choices_share_one_prompt(gateway: Gateway, tokenizer: Tokenizer) -> None:
    done = gateway.openai.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4, n=3, seed=1)
    assert [c.index for c in done.choices] == [0, 1, 2]
    assert done.usage is not None
    assert done.usage.prompt_tokens == len(tokenizer.encode_chat(MESSAGES))
    assert done.usage.completion_tokens == 12


def test_n_streams_end_each_choice(gateway: Gateway) -> None:
    with gateway.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=4, n=3, stream=True
    ) as stream:
        chunks = [c.choices[0] for c in stream]
    for index in range(3):
        mine = [c for c in chunks if c.index == index]
        assert mine[0].delta.role == "assistant"
        assert [c.finish_reason for c in mine].count("length") == 1
        assert ANSWER.startswith("".join(c.delta.content or "" for c in mine))


def test_logprobs_spell_out_the_text(gateway: Gateway) -> None:
    done = gateway.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=3
    )
    entries = done.choices[0].logprobs
    assert entries is not None
    assert entries.content is not None
    assert len(entries.content) == 12
    spelled = b"".join(bytes(e.bytes or []) for e in entries.content)
    assert spelled.decode("utf-8", "replace") == done.choices[0].message.content
    assert all(len(e.top_logprobs) == 3 and e.logprob <= 0 for e in entries.content)


def test_streamed_logprobs_never_run_ahead_of_a_stop_string(gateway: Gateway) -> None:
    stop = "code 🙂"
    with gateway.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=300, stop=stop, logprobs=True, stream=True
    ) as stream:
        chunks = [c.choices[0] for c in stream]
    tokens = [e for c in chunks if c.logprobs for e in c.logprobs.content or []]
    text = "".join(c.delta.content or "" for c in chunks)
    assert text == ANSWER[: ANSWER.index(stop)]
    spelled = b"".join(bytes(e.bytes or []) for e in tokens).decode()
    assert spelled.startswith(text), "the last token may reach into the stop string, no token begins in it"
    assert len(spelled) - len(text) < len(tokens[-1].token)


def test_tools_are_shown_to_the_model_and_calls_stay_text(gateway: Gateway, tokenizer: Tokenizer) -> None:
    for choice in ("none", "auto", None):
        body = {
            "model": "tiny",
            "messages": MESSAGES,
            "tools": [TOOL],
            "max_tokens": 2,
            "tool_choice": choice,
        }
        response = gateway.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        expected = len(tokenizer.encode_chat(MESSAGES, [TOOL]))
        assert response.json()["usage"]["prompt_tokens"] == expected
        assert response.json()["choices"][0]["message"]["content"]


def test_template_options_reach_the_template(gateway: Gateway, tokenizer: Tokenizer) -> None:
    body = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_tokens": 1,
        "chat_template_kwargs": {"style": "in rhymes"},
    }
    styled = gateway.http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    plain = gateway.http.post("/v1/chat/completions", json={**body, "chat_template_kwargs": {}}).json()
    bare = gateway.http.post("/v1/chat/completions", json={**body, "add_generation_prompt": False}).json()
    assert styled == len(tokenizer.encode_chat(MESSAGES, style="in rhymes"))
    assert styled > plain["usage"]["prompt_tokens"] > bare["usage"]["prompt_tokens"]


def test_the_last_message_can_be_continued(gateway: Gateway, tokenizer: Tokenizer) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "It is a"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 1, "continue_final_message": True}
    used = gateway.http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    text = tokenizer.render_chat(messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("It is a")
    assert used == len(tokenizer.encode(text, add_special_tokens=False))
    refused = gateway.http.post("/v1/chat/completions", json={**body, "add_generation_prompt": True})
    assert refused.status_code == 400


def test_content_parts_of_text_are_one_text(gateway: Gateway, tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "it?"}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    used = gateway.http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    assert used == len(tokenizer.encode_chat([{"role": "user", "content": "What is\nit?"}]))


def test_optional_fields_are_left_out_and_required_ones_are_null(gateway: Gateway) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
    choice = gateway.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["logprobs"] is None
    assert choice["message"]["refusal"] is None
    assert "tool_calls" not in choice["message"]
    lines = gateway.http.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    assert all("usage" not in line and '"logprobs"' not in line for line in lines)


def test_an_alias_answers_under_the_name_that_was_asked(gateway: Gateway) -> None:
    done = gateway.openai.chat.completions.create(model="tiny-alias", messages=MESSAGES, max_tokens=1)
    assert done.model == "tiny-alias"
