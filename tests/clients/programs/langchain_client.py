"""langchain-openai's chat model: calls, streams, batches."""

from __future__ import annotations

from typing import Any

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI


def chat(url: str, key: str, **options: Any) -> Any:
    return ChatOpenAI(
        base_url=url, api_key=key, **{"model": "tiny", "temperature": 0, "max_retries": 0, **options}
    )


def check_invoke_gives_text_and_usage(url: str, key: str) -> None:
    answer = chat(url, key).invoke("Hello!")
    assert answer.content
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["output_tokens"] > 1
    assert answer.response_metadata["finish_reason"] == "stop"


def check_stream_gives_the_text_of_invoke(url: str, key: str) -> None:
    model = chat(url, key, stream_usage=True)
    chunks = list(model.stream("Hello!"))
    assert len(chunks) > 3
    assert "".join(chunk.content for chunk in chunks) == model.invoke("Hello!").content
    assert any(chunk.usage_metadata for chunk in chunks)


def check_batch_answers_each(url: str, key: str) -> None:
    model = chat(url, key, max_tokens=8)
    questions = ["Hello!", "I lost my card.", "What are your fees?"]
    assert [a.content for a in model.batch(questions)] == [model.invoke(q).content for q in questions]


async def check_async_forms(url: str, key: str) -> None:
    model = chat(url, key)
    answer = await model.ainvoke([("system", "Be brief."), ("human", "Hello!")])
    pieces = [chunk.content async for chunk in model.astream([("system", "Be brief."), ("human", "Hello!")])]
    assert "".join(pieces) == answer.content


def check_a_chain_with_template_logprobs_and_stop(url: str, key: str) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{text}")])
    text = (prompt | chat(url, key) | StrOutputParser()).invoke({"text": "Hello!"})
    assert text
    bound = chat(url, key).bind(logprobs=True, top_logprobs=2, stop=[text[4]])
    answer = (prompt | bound).invoke({"text": "Hello!"})
    assert answer.content == text[: text.index(text[4])]
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


def check_completions(url: str, key: str) -> None:
    model: Any = OpenAI(base_url=url, api_key=key, model="tiny", temperature=0, max_tokens=8)
    assert model.invoke("Hello") == "".join(model.stream("Hello"))


def check_errors_stay_the_official_ones(url: str, key: str) -> None:
    wrong = (
        (chat(url, key, model="nope"), openai.NotFoundError),
        (chat(url, "no"), openai.AuthenticationError),
    )
    for model, expected in wrong:
        try:
            model.invoke("Hello!")
        except expected:
            continue
        raise AssertionError(expected)


def check_a_prompt_that_is_too_long_is_told_apart(url: str, key: str) -> None:
    try:
        chat(url, key).invoke("a " * 5000)
    except ContextOverflowError:
        return
    raise AssertionError("not refused")
