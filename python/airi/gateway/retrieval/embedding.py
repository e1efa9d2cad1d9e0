"""Vectors of texts within a call: a call of its own to the embedder, by the same caller and in the same release.

It is decided on as `embed`, passes the embedder's content rules and is charged to the caller's limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from airi.gateway.gate import Gate, call_context
from airi.gateway.http import CallRecord
from airi.gateway.metrics import now
from airi.gateway.models import ServedModel
from airi.gateway.openai.inputs import screened_prompts
from airi.gateway.pooling import PoolingGeneration, Text, read_texts
from airi.gateway.tasks import check_task
from airi.policy import ANYONE
from airi.policy.decisions import Action

if TYPE_CHECKING:
    from airi.gateway.content import CallContent
    from airi.gateway.watching import Sight
    from airi.outputs import Task
    from airi.retrieval.spaces import Vectors

__all__ = ["Embedded", "admit_embedder", "embed", "embed_for_nobody", "inner_call"]

_EMBEDS: Final[frozenset[Task]] = frozenset({"embed"})


class Embedded(NamedTuple):
    """What texts became."""

    vectors: Vectors
    """[texts, dimension]"""
    texts: list[str]
    """As content rules have left them."""
    tokens: int
    sight: Sight | None
    """What saw the call; None where the embedder is in no rollout."""


def inner_call(record: CallRecord) -> CallRecord:
    """The record of a call to the embedder: it keeps the releases of the call that it is made for."""
    asked = record.inner()
    asked.draw = record.draw
    return asked


def admit_embedder(
    gate: Gate, asked: CallRecord, name: str, texts: int, *, priority: int | None
) -> ServedModel:
    """The version of the embedder that this call is given. Raises as `Gate.admit`."""
    model = gate.admit(
        asked, Action.EMBED, name, lambda _: call_context(asked, max_tokens=0, n=texts, priority=priority)
    )
    check_task(model, _EMBEDS)
    return model


async def embed(
    gate: Gate,
    asked: CallRecord,
    model: ServedModel,
    texts: Sequence[Text],
    *,
    most: int | None = None,
    priority: int | None = None,
) -> Embedded:
    """Vectors of texts, each with the field that errors name; a text is cut to `most` tokens where that is given.

    Raises a 400 for an empty text or one that is too long, a 429 over limits, and what calls end with.
    """
    size = sum(len(text) for _, text in texts)
    content = gate.content_of(asked, model, size)
    sight = gate.sight_of(asked, model)
    generation = PoolingGeneration(model, asked.principal, arrived=now(), content=content, sight=sight)
    try:
        async with generation:
            given = await _screened(texts, content)
            for (field, _), tokens in zip(given, await read_texts(model, given, most=most), strict=True):
                generation.add_text(tokens, field, priority=priority)
            await gate.reserve(asked, generation, priority=priority)
            if content is not None:
                await content.judge_prompts()
            generation.begin()
            while not generation.done:
                await generation.take(per_token=False)
            made = [str(text) for _, text in given]
            return Embedded(generation.vectors, made, generation.num_read, sight)
    except Exception as error:
        if sight is not None:
            sight.error = error
        raise
    finally:
        if content is not None:
            content.close()
        model.metrics.prompt_tokens.inc(generation.num_read)
        if sight is not None:
            sight.ended()


async def embed_for_nobody(
    model: ServedModel, texts: Sequence[str], *, most: int | None = None, priority: int | None
) -> Vectors:
    """Vectors of rows' texts, [texts, dimension], in one more version of an embedder: nobody is charged for these.

    Raises ContextLengthError for a text that it cannot read whole, and what calls end with.
    """
    generation = PoolingGeneration(model, ANYONE, arrived=now())
    async with generation:
        for tokens in await read_texts(model, [("a row", text) for text in texts], most=most):
            generation.add_text(tokens, "a row", priority=priority)
        generation.begin()
        while not generation.done:
            await generation.take(per_token=False)
    return generation.vectors


async def _screened(texts: Sequence[Text], content: CallContent | None) -> Sequence[Text]:
    if content is None or not content.input.exist:
        return texts
    fields = [field for field, _ in texts]
    found = await screened_prompts([text for _, text in texts], content, fields=fields)
    return list(zip(fields, found, strict=True))
