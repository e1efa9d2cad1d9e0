"""The tokens of a request on their way from the engine to pieces of text."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from airi.errors import EngineDeadError
from airi.gateway.choice import Piece
from airi.gateway.generation import Generation
from airi.gateway.metrics import Metrics, now
from airi.gateway.models import ServedModel
from airi.outputs import ErrorInfo, FinishReason
from airi.policy import ANYONE
from airi.sampling_params import SamplingParams
from airi.text import Tokenizer
from airi.transport import EngineClient, GenerateRequest, ModelInfo, Output, TokenLogprobs

from .conftest import ANSWER


class FakeClient:
    """Keeps what was submitted and cancelled; the test plays the engine."""

    def __init__(self) -> None:
        self.sinks: dict[int, Any] = {}
        self.cancelled: list[int] = []

    def submit(self, request: GenerateRequest, sink: Any) -> None:
        self.sinks[request.request_id] = sink

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)

    def give(self, request_id: int, tokens: list[int], reason: FinishReason | None = None) -> None:
        self.sinks[request_id](Output(request_id, tokens, reason))


def start(model_folder: Path, tokenizer: Tokenizer, *params: SamplingParams) -> tuple[FakeClient, Generation]:
    client = FakeClient()
    info = ModelInfo(name="m", path=str(model_folder), max_model_len=512, vocab_size=600)
    model = ServedModel(
        info=info,
        tokenizer=tokenizer,
        client=cast(EngineClient, client),
        metrics=Metrics("1").model("m"),
    )
    generation = Generation(model, ANYONE, arrived=now())
    for one in params:
        generation.add([5, 6], one, priority=None, cache_salt=None)
    generation.begin()
    return client, generation


async def test_outputs_that_wait_are_taken_together_and_cut_per_token(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    client, generation = start(model_folder, tokenizer, SamplingParams())
    (request_id,) = client.sinks
    tokens = tokenizer.encode("is it for what", add_special_tokens=False)
    client.give(request_id, tokens[:1])
    client.give(request_id, tokens[1:3])
    client.give(request_id, tokens[3:], "length")
    ((choice, pieces),) = (await generation.take(per_token=True)).items()
    assert len(pieces) == len(tokens)
    assert "".join(piece.text for piece in pieces) == "is it for what"
    assert (choice.finish_reason, choice.completion_tokens) == ("length", len(tokens))
    assert generation.done


async def test_what_came_before_an_engines_death_still_goes_out(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    client, generation = start(model_folder, tokenizer, SamplingParams())
    (request_id,) = client.sinks
    client.give(request_id, tokenizer.encode("what", add_special_tokens=False))
    client.sinks[request_id](Output(request_id, [], "error", error=ErrorInfo("engine_dead", "it died")))
    ((_, pieces),) = (await generation.take(per_token=True)).items()
    assert [piece.text for piece in pieces] == ["what"]
    with pytest.raises(EngineDeadError, match="it died"):
        await generation.take(per_token=True)


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 100])
async def test_a_stop_string_is_found_wherever_the_outputs_are_cut(
    model_folder: Path, tokenizer: Tokenizer, cut: int
) -> None:
    stop = "code 🙂"
    client, generation = start(model_folder, tokenizer, SamplingParams(stop=(stop,), logprobs=None))
    (request_id,) = client.sinks
    tokens = tokenizer.encode(ANSWER, add_special_tokens=False)
    for i in range(0, len(tokens), cut):
        client.give(request_id, tokens[i : i + cut])
    ((choice, pieces),) = (await generation.take(per_token=True)).items()
    assert "".join(piece.text for piece in pieces) == ANSWER[: ANSWER.index(stop)]
    assert choice.finish_reason == "stop"
    needed = next(n for n in range(len(tokens) + 1) if stop in tokenizer.decode(tokens[:n]))
    assert choice.completion_tokens == needed
    assert client.cancelled == [request_id]
    assert generation.done


async def test_closing_cancels_what_still_runs_and_nothing_else(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    client, generation = start(model_folder, tokenizer, SamplingParams(), SamplingParams())
    first, second = client.sinks
    client.give(first, [5], "length")
    await generation.take(per_token=True)
    client.cancelled.clear()
    generation.close()
    assert client.cancelled == [second]


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("stop", [(), ("code 🙂",)])
async def test_outputs_that_waited_say_what_they_say_one_by_one(
    model_folder: Path, tokenizer: Tokenizer, stop: tuple[str, ...], *, per_token: bool
) -> None:
    tokens = tokenizer.encode(ANSWER, add_special_tokens=False)

    async def told(*, waiting: bool) -> list[tuple[Any, ...]]:
        params = SamplingParams(stop=stop, logprobs=0)
        client, generation = start(model_folder, tokenizer, params, params)
        found: dict[int, list[Piece]] = {0: [], 1: []}
        for i, token in enumerate(tokens):
            reason: FinishReason | None = "length" if i + 1 == len(tokens) else None
            for request_id in client.sinks:
                entry = TokenLogprobs(token, -i, 1)
                client.sinks[request_id](Output(request_id, [token], reason, logprobs=[entry]))
            while (not waiting or reason) and generation._ready:
                for choice, pieces in (await generation.take(per_token=per_token)).items():
                    found[choice.index] += pieces
        return [
            (
                "".join(piece.text for piece in found[choice.index]),
                [entry for piece in found[choice.index] for entry in piece.logprobs],
                [offset for piece in found[choice.index] for offset in piece.offsets],
                choice.finish_reason,
                choice.completion_tokens,
            )
            for choice in generation.choices
        ]

    assert await told(waiting=True) == await told(waiting=False)


async def test_a_choice_has_ended_also_where_its_last_outputs_are_read_by_nobody(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    client, generation = start(model_folder, tokenizer, SamplingParams(stop=("what",)))
    (request_id,) = client.sinks
    token, *_ = tokens = tokenizer.encode("what", add_special_tokens=False)
    client.give(request_id, tokens)
    await generation.take(per_token=False)
    assert generation.done
    ended = asyncio.ensure_future(generation.__aexit__(None, None, None))
    await asyncio.sleep(0)
    for reason in (None, "length"):
        client.give(request_id, [token], cast(Any, reason))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.wait_for(ended, 10)
