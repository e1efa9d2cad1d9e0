"""Questions to served models that have one of a few answers: what judges and classifiers ask.

The text that a question is about is data: it stands between marks that nobody can guess, and nothing in it is read as
the model's own marks. A model of the engine can give no other answer than one of those asked for; another server's is
asked in words, and what it says beside them is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from airi.errors import ContextLengthError, EngineError, RequestError
from airi.gateway.generation import Generation
from airi.gateway.metrics import now
from airi.gateway.models import ServedModel
from airi.gateway.openai.schemas_common import TokenizeRequest
from airi.gateway.prompts import check_prompt, encode_text, render_chat
from airi.gateway.upstreams.context import context_headers
from airi.gateway.upstreams.generation import UpstreamGeneration
from airi.sampling_params import SamplingParams
from airi.structured_output import StructuredOutput
from airi.upstreams.errors import UpstreamRefusal

if TYPE_CHECKING:
    from airi.gateway.http import CallRecord
    from airi.text import Tokenizer

__all__ = ["Reserve", "ask", "most_tokens", "without_marks"]

Reserve = Callable[[Generation], Awaitable[object]]
"""Has a question counted; raises a 429 where it is over a limit."""

_TOO_LONG: Final = re.compile(
    r"context length|context window|prompt is too long|too many tokens", re.IGNORECASE
)
"""What servers call it."""
_ANY_MARK: Final = re.compile(r"<(?=\S)|\[(?=/?[A-Z])")
"""What a mark of a model may begin with whose tokens are not known here."""
_AROUND: Final = " \t\r\n\"'`*.,:;!"
"""What an answer in words may stand between."""


async def ask(
    model: ServedModel,
    record: CallRecord,
    reserve: Reserve,
    prompt: str,
    answers: StructuredOutput,
    field: str,
) -> str:
    """The one of the `answers` (a choice) that a model gives to a prompt; `field` is what errors name.

    `record`: of the call that this is.

    Raises ContextLengthError for what it cannot read whole, RequestError for another answer, and what calls end with.
    """
    stats = model.client.stats
    if stats is not None and any(m.name == model.engine_name and m.state != "awake" for m in stats.models):
        raise EngineError(f"{model.name} is asleep")
    most = most_tokens(answers)
    if model.upstream is None:
        generation = Generation(model, record.principal, arrived=now())
        tokens = await _prompt(model, prompt, most, field)
        params = SamplingParams(temperature=0.0, max_tokens=most, structured=answers)
        generation.add(tokens, params, priority=None, cache_salt=None)
    else:
        headers = context_headers(record, model)
        generation = UpstreamGeneration(
            model, model.upstream, record.principal, arrived=now(), headers=headers
        )
        await _ask_upstream(model, generation, prompt, most, field)
    said = _folded(await _answer(model, generation, reserve, field))
    found = next((each for each in answers.choices if _folded(each) == said), None)
    if found is None:
        raise RequestError(f"{field}: the answer is none of those asked for", field=field)
    return found


def most_tokens(answers: StructuredOutput) -> int:
    """Of any of the answers, with its end: no token is less than a byte."""
    return max(16, 1 + max(len(each.encode()) for each in answers.choices))


async def _answer(model: ServedModel, generation: Generation, reserve: Reserve, field: str) -> str:
    texts: list[str] = []
    try:
        async with generation:
            await reserve(generation)
            generation.begin()
            while not generation.done:
                for pieces in (await generation.take(per_token=False)).values():
                    texts += [piece.text for piece in pieces]
    except UpstreamRefusal as error:
        if error.error_code == "context_length_exceeded" or _TOO_LONG.search(str(error)):
            raise ContextLengthError(f"{field}: {error}", field=field) from None
        raise
    finally:
        model.metrics.prompt_tokens.inc(sum(choice.prompt_tokens for choice in generation.choices))
        model.metrics.generation_tokens.inc(generation.num_generated)
    return "".join(texts)


async def _prompt(model: ServedModel, prompt: str, most: int, field: str) -> list[int]:
    if model.tokenizer.chat_template is None:
        tokens = await encode_text(model, prompt, add_special_tokens=True, field=field)
    else:
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        tokens = await render_chat(model, messages, TokenizeRequest(), field=field)
    check_prompt(model, tokens, most, field=field)
    return tokens


async def _ask_upstream(
    model: ServedModel, generation: UpstreamGeneration, prompt: str, most: int, field: str
) -> None:
    # They import what calls of clients are, which import what judges those.
    from airi.gateway.openai.schemas_chat import ChatCompletionRequest
    from airi.gateway.upstreams.requests import ask_chat, check_length

    check_length(model, len(prompt), field)
    if model.knows_tokens:
        check_prompt(
            model, await encode_text(model, prompt, add_special_tokens=True, field=field), most, field=field
        )
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    request = ChatCompletionRequest(model=model.name, messages=messages, temperature=0.0, max_tokens=most)
    await ask_chat(request, model, generation, most)


def _folded(text: str) -> str:
    return text.strip(_AROUND).casefold()


def without_marks(model: ServedModel, text: str) -> str:
    """A text with special tokens' names broken up: it cannot end the question and answer it itself."""
    if model.upstream is not None:
        text = _ANY_MARK.sub(lambda found: f"{found[0]}\u200b", text)
    return _marks(model.tokenizer).sub(lambda found: f"{found[0][:1]}\u200b{found[0][1:]}", text)


@lru_cache(maxsize=64)
def _marks(tokenizer: Tokenizer) -> re.Pattern[str]:
    names = {tokenizer.token_text(token) for token in tokenizer.special_ids} - {""}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
