"""The official Python client: sync, async, raw responses, errors as its own classes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

GREETING: Any = [{"role": "user", "content": "Hello!"}]
GREEDY: Any = {"model": "tiny", "messages": GREETING, "temperature": 0}


def client(url: str, key: str, **options: Any) -> OpenAI:
    return OpenAI(base_url=url, api_key=key, timeout=60, **{"max_retries": 0, **options})


def refused(expected: type[openai.APIStatusError], call: Callable[[], object]) -> openai.APIStatusError:
    """The error of a call that must be refused with exactly this class."""
    try:
        call()
    except openai.APIStatusError as raised:
        error = raised
    else:
        raise AssertionError(f"no {expected.__name__}")
    assert type(error) is expected, repr(error)
    assert error.request_id
    return error


def check_models_have_aliases(url: str, key: str) -> None:
    api = client(url, key)
    assert {model.id for model in api.models.list()} == {"airi-demo", "embedder", "tiny"}
    assert api.models.retrieve("tiny").id == "tiny"


def check_chat_answers_and_ends_by_itself(url: str, key: str) -> None:
    done = client(url, key).chat.completions.create(**GREEDY)
    (choice,) = done.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "stop"
    assert done.usage
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.completion_tokens > 1


def check_stream_is_the_same_text_with_usage_at_its_end(url: str, key: str) -> None:
    api = client(url, key)
    whole = api.chat.completions.create(**GREEDY)
    chunks = list(api.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len({c.id for c in chunks}) == 1
    assert not chunks[-1].choices
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def check_stream_helper_accumulates_the_answer(url: str, key: str) -> None:
    options: Any = {"stream_options": {"include_usage": True}}
    with client(url, key).chat.completions.stream(**GREEDY, **options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content
    assert final.usage


def check_a_stream_may_be_left_early(url: str, key: str) -> None:
    api = client(url, key)
    with api.chat.completions.create(
        **GREEDY, stream=True, max_tokens=900, extra_body={"ignore_eos": True}
    ) as stream:
        for _ in zip(range(3), stream, strict=False):
            pass
    assert api.chat.completions.create(**GREEDY, max_tokens=1).choices[0].finish_reason == "length"


def check_logprobs_are_of_the_tokens_of_the_text(url: str, key: str) -> None:
    done = client(url, key).chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    logprobs = done.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert "".join(token.token for token in logprobs.content).startswith(
        done.choices[0].message.content or "-"
    )
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert bytes(token.bytes or ()).decode(errors="replace") == token.token


def check_choices_seeds_and_stops(url: str, key: str) -> None:
    api = client(url, key)
    text = api.chat.completions.create(**GREEDY).choices[0].message.content or ""
    several = api.chat.completions.create(**GREEDY, n=3)
    assert [(c.index, c.message.content) for c in several.choices] == [(i, text) for i in range(3)]
    warm: Any = {**GREEDY, "temperature": 1.5, "seed": 5, "max_completion_tokens": 20, "n": 4}
    first, second = (api.chat.completions.create(**warm) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1
    stop = text[3:6]
    stopped = api.chat.completions.create(**GREEDY, stop=[stop]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(stop)], "stop")


def check_completions_take_batches_tokens_and_echo(url: str, key: str) -> None:
    api = client(url, key)
    done = api.completions.create(model="tiny", prompt=["Hello", "My card"], max_tokens=4, n=2, temperature=0)
    texts = [choice.text for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert api.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=1).usage.prompt_tokens == 3  # type: ignore[union-attr]
    echoed = api.completions.create(model="tiny", prompt="Hello", echo=True, logprobs=2, max_tokens=2)
    assert echoed.choices[0].text.startswith("Hello")
    logprobs = echoed.choices[0].logprobs
    assert logprobs
    assert logprobs.token_logprobs
    assert logprobs.token_logprobs[0] is None  # the client's type has no null
    chunks = api.completions.create(model="tiny", prompt="Hello", max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts[0]


def check_embeddings_are_the_same_in_base64_and_as_numbers(url: str, key: str) -> None:
    api = client(url, key)
    texts = ["to be", "or not to be"]
    packed = api.embeddings.create(model="embedder", input=texts)
    plain = api.embeddings.create(model="embedder", input=texts, encoding_format="float")
    assert [each.embedding for each in packed.data] == [each.embedding for each in plain.data]
    assert [(each.index, len(each.embedding)) for each in packed.data] == [(0, 32), (1, 32)]
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 4
    error = refused(openai.BadRequestError, lambda: api.embeddings.create(model="embedder", input=["x", ""]))
    assert error.param == "input[1]"
    error = refused(openai.BadRequestError, lambda: api.embeddings.create(model="tiny", input="x"))
    assert error.param == "model"


def check_raw_responses_show_headers(url: str, key: str) -> None:
    raw = client(url, key).chat.completions.with_raw_response.create(**GREEDY)
    assert raw.status_code == 200
    assert raw.headers["x-request-id"] == raw.request_id
    assert raw.parse().choices[0].message.content
    with client(url, key).chat.completions.with_streaming_response.create(**GREEDY) as streamed:
        assert b"chat.completion" in streamed.read()


async def check_async_calls_run_side_by_side(url: str, key: str) -> None:
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as api:
        answers = await asyncio.gather(*(api.chat.completions.create(**GREEDY) for _ in range(20)))
        (text,) = {answer.choices[0].message.content for answer in answers}
        stream = await api.chat.completions.create(**GREEDY, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == text


def check_400_is_a_bad_request(url: str, key: str) -> None:
    api = client(url, key)
    calls: dict[str, Callable[[], object]] = {
        "temperature": lambda: api.chat.completions.create(**{**GREEDY, "temperature": -1}),
        "max_tokens": lambda: api.chat.completions.create(**GREEDY, max_tokens=-5),
        "messages": lambda: api.chat.completions.create(model="tiny", messages=[]),
        "prompt": lambda: api.completions.create(model="tiny", prompt="a " * 5000, max_tokens=4),
    }
    for field, call in calls.items():
        error = refused(openai.BadRequestError, call)
        assert error.param == field, field
        assert error.type == "invalid_request_error"


def check_401_is_an_authentication_error(url: str, key: str) -> None:
    error = refused(openai.AuthenticationError, lambda: client(url, f"{key}x").models.list())
    assert error.code == "invalid_api_key"


def check_404_is_not_found(url: str, key: str) -> None:
    api = client(url, key)
    error = refused(openai.NotFoundError, lambda: api.chat.completions.create(**{**GREEDY, "model": "nope"}))
    assert (error.code, error.param) == ("model_not_found", "model")
    refused(openai.NotFoundError, lambda: api.models.retrieve("nope"))


async def check_429_is_a_rate_limit_error_that_passes(_: str, key: str, tight_url: str) -> None:
    long: Any = {**GREEDY, "max_tokens": 200, "extra_body": {"ignore_eos": True}}

    refusals: list[openai.RateLimitError] = []

    async def ask(api: AsyncOpenAI) -> str:
        try:
            done = await api.chat.completions.create(**long)
            return str(done.choices[0].finish_reason)
        except openai.RateLimitError as error:
            refusals.append(error)
            return "refused"

    async with AsyncOpenAI(base_url=tight_url, api_key=key, max_retries=0, timeout=60) as api:
        ends = await asyncio.gather(*(ask(api) for _ in range(30)))
    assert set(ends) == {"length", "refused"}, ends
    assert {error.code for error in refusals} == {"queue_full"}
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refusals)
    async with AsyncOpenAI(base_url=tight_url, api_key=key, max_retries=50, timeout=60) as api:
        assert await asyncio.gather(*(ask(api) for _ in range(4))) == ["length"] * 4
