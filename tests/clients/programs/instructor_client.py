"""instructor around the official client, without a schema: structured output is not served yet."""

from __future__ import annotations

from typing import Any

import instructor
import openai

HELLO: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}


def check_text_comes_through_the_patched_client(url: str, key: str) -> None:
    plain = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    expected = plain.chat.completions.create(**HELLO).choices[0].message.content
    for mode in (instructor.Mode.TOOLS, instructor.Mode.MD_JSON):
        patched: Any = instructor.from_openai(plain, mode=mode)
        done = patched.chat.completions.create(response_model=None, **HELLO)
        assert done.choices[0].message.content == expected


async def check_text_comes_through_the_async_client(url: str, key: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as plain:
        patched: Any = instructor.from_openai(plain, mode=instructor.Mode.MD_JSON)
        done = await patched.chat.completions.create(response_model=None, **HELLO)
        assert done.choices[0].message.content
