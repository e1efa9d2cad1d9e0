"""The litellm client, which treats the server as OpenAI, as text completion and as a hosted vLLM."""

from __future__ import annotations

from typing import Any

import litellm

litellm.telemetry = False
HELLO: Any = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "num_retries": 0}


def check_completion_under_each_provider(url: str, key: str) -> None:
    for model in ("openai/tiny", "hosted_vllm/tiny"):
        done = litellm.completion(model=model, api_base=url, api_key=key, **HELLO)
        assert done.choices[0].message.content
        assert done.choices[0].finish_reason == "stop"
        assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def check_stream_with_usage(url: str, key: str) -> None:
    call = {"model": "openai/tiny", "api_base": url, "api_key": key, **HELLO}
    chunks = list(litellm.completion(**call, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == litellm.completion(**call).choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 1


def check_text_completion(url: str, key: str) -> None:
    call = {"model": "text-completion-openai/tiny", "api_base": url, "api_key": key, "prompt": "Hello"}
    done = litellm.text_completion(**call, max_tokens=4)
    assert done.choices[0].text
    assert done.usage.completion_tokens == 4


def check_embeddings(url: str, key: str) -> None:
    call = {"model": "openai/embedder", "api_base": url, "api_key": key}
    done = litellm.embedding(**call, input=["to be", "or not to be"])
    assert [len(each["embedding"]) for each in done.data] == [32, 32]
    assert done.usage.prompt_tokens > 4


def check_rerank(url: str, key: str) -> None:
    call = {"model": "hosted_vllm/embedder", "api_base": url, "api_key": key}
    done = litellm.rerank(**call, query="to be", documents=["or not", "to be"], top_n=1)
    (best,) = done.results
    assert (best["index"], best["document"]["text"]) == (1, "to be")
    assert best["relevance_score"] > 0.99


async def check_async_completion(url: str, key: str) -> None:
    call = {"model": "openai/tiny", "api_base": url, "api_key": key, **HELLO}
    done = await litellm.acompletion(**call)
    pieces = [c.choices[0].delta.content or "" async for c in await litellm.acompletion(**call, stream=True)]
    assert "".join(pieces) == done.choices[0].message.content


def check_errors_are_mapped(url: str, key: str) -> None:
    call = {"model": "openai/tiny", "api_base": url, "api_key": key, **HELLO}
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"temperature": -1}, litellm.BadRequestError),
        ({"api_key": "no"}, litellm.AuthenticationError),
        ({"model": "openai/nope"}, litellm.NotFoundError),
        (
            {"messages": [{"role": "user", "content": "a " * 5000}]},
            litellm.ContextWindowExceededError,
        ),
    ]
    for change, expected in wrong:
        try:
            litellm.completion(**{**call, **change})
        except expected:
            continue
        raise AssertionError(expected)
