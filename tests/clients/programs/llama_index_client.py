"""llama-index's model for servers that speak OpenAI's API."""

from __future__ import annotations

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def model(url: str, key: str, *, chat: bool = True) -> Any:
    return OpenAILike(
        model="tiny",
        api_base=url,
        api_key=key,
        is_chat_model=chat,
        max_tokens=20,
        temperature=0,
        context_window=1024,
        max_retries=0,
    )


def check_complete_and_its_stream(url: str, key: str) -> None:
    for chat in (True, False):
        llm = model(url, key, chat=chat)
        text = llm.complete("Hello!").text
        assert text
        assert [piece.text for piece in llm.stream_complete("Hello!")][-1] == text


def check_chat_and_its_stream(url: str, key: str) -> None:
    llm = model(url, key)
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello!")]
    text = llm.chat(messages).message.content
    assert text
    assert "".join(piece.delta or "" for piece in llm.stream_chat(messages)) == text


async def check_async_forms(url: str, key: str) -> None:
    llm = model(url, key)
    text = (await llm.acomplete("Hello!")).text
    pieces = [piece.delta or "" async for piece in await llm.astream_complete("Hello!")]
    assert "".join(pieces) == text
