"""openai-agents with its models over chat completions and over responses, without tools."""

from __future__ import annotations

from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)


def agent(url: str, key: str, kind: Any = OpenAIChatCompletionsModel) -> Any:
    api = AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
    return Agent(
        name="Teller",
        instructions="Be brief.",
        model=kind(model="tiny", openai_client=api),
        model_settings=ModelSettings(temperature=0, max_tokens=60, include_usage=True),
    )


async def check_run_gives_an_answer_and_usage(url: str, key: str) -> None:
    result = await Runner.run(agent(url, key), "Hello!", max_turns=2)
    assert result.final_output
    assert result.context_wrapper.usage.output_tokens > 1


async def check_run_streamed_gives_the_same_answer(url: str, key: str) -> None:
    teller = agent(url, key)
    result = Runner.run_streamed(teller, "Hello!", max_turns=2)
    kinds = {event.type async for event in result.stream_events()}
    assert "raw_response_event" in kinds
    assert result.final_output == (await Runner.run(teller, "Hello!", max_turns=2)).final_output


async def check_a_second_turn_remembers_the_first(url: str, key: str) -> None:
    teller = agent(url, key)
    first = await Runner.run(teller, "Hello!", max_turns=2)
    history = [*first.to_input_list(), {"role": "user", "content": "I lost my card."}]
    second = await Runner.run(teller, history, max_turns=2)
    assert second.final_output
    assert second.context_wrapper.usage.input_tokens > first.context_wrapper.usage.input_tokens


async def check_the_responses_model_answers_the_same_and_streams(url: str, key: str) -> None:
    teller = agent(url, key, OpenAIResponsesModel)
    result = await Runner.run(teller, "Hello!", max_turns=2)
    assert result.final_output == (await Runner.run(agent(url, key), "Hello!", max_turns=2)).final_output
    streamed = Runner.run_streamed(teller, "Hello!", max_turns=2)
    assert "raw_response_event" in {event.type async for event in streamed.stream_events()}
    assert streamed.final_output == result.final_output
    history = [*result.to_input_list(), {"role": "user", "content": "I lost my card."}]
    second = await Runner.run(teller, history, max_turns=2)
    assert second.context_wrapper.usage.input_tokens > result.context_wrapper.usage.input_tokens
