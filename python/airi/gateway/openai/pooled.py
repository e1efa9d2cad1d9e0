"""What endpoints have in common whose models read texts whole: texts to tokens, numbers to one answer."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from airi.gateway.content import CallContent
from airi.gateway.errors import bad_field
from airi.gateway.gate import call_context
from airi.gateway.generation import Generation
from airi.gateway.http import CallRecord, Send, respond
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import Call, Reply
from airi.gateway.openai.inputs import screened_prompts
from airi.gateway.openai.schemas_pooling import MAX_INPUTS, InputFields, PoolingFields, PoolingUsage
from airi.gateway.pooling import PoolingGeneration, Text, read_texts
from airi.gateway.prompts import is_long, split_prompt
from airi.gateway.watching import Sight

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PooledReply", "PoolingCall", "inputs_of", "most_tokens"]

P = TypeVar("P", bound=PoolingFields)


class PooledReply(Reply, ABC):
    """How the numbers of one request become JSON."""

    def __init__(self, prefix: str, request: PoolingFields, model: ServedModel) -> None:
        super().__init__(f"{prefix}-{secrets.token_hex(12)}", request, model)

    @abstractmethod
    def body(self, vectors: NDArray[np.float32], usage: PoolingUsage) -> bytes:
        """The answer; `vectors`: [texts, numbers], in the order in which they were asked for."""


class PoolingCall(Call[P, PooledReply]):
    """An endpoint that reads texts."""

    @abstractmethod
    def texts(self, request: P) -> list[Text]:
        """All that is to be read, with its fields; raises a 400 for what cannot be."""

    @abstractmethod
    def count(self, request: P) -> int:
        """Of what the answer has numbers for."""

    @abstractmethod
    def reply(self, request: P, model: ServedModel, texts: Sequence[Text]) -> PooledReply:
        """The form of the answer."""

    def context(self, request: P, record: CallRecord, model: ServedModel) -> dict[str, Any]:
        """As `Call.context`."""
        return call_context(record, max_tokens=0, n=self.count(request), priority=request.priority)

    def check(self, request: P, model: ServedModel) -> None:
        """Raises a 400 for what this model cannot give."""

    async def tokens(
        self, request: P, model: ServedModel, texts: Sequence[Text]
    ) -> list[tuple[str, list[int]]]:
        """What the model reads, each with the field that errors name."""
        most = most_tokens(request, model, least=1 + model.reader.least(is_pair=False) if model.reader else 1)
        found = await read_texts(model, texts, most=most)
        return [(field, tokens) for (field, _), tokens in zip(texts, found, strict=True)]

    async def start(self, request: P, model: ServedModel, generation: Generation) -> PooledReply:
        """Each text is a request of its own."""
        if not isinstance(generation, PoolingGeneration):
            raise TypeError("another generation than this endpoint's")
        self.check(request, model)
        texts = self.texts(request)
        content = generation.content
        if content is not None and content.input.exist:
            # Rules read nothing that is too long for the model.
            long = [each for each in texts if is_long(model, len(each[1]))]
            if request.truncate_prompt_tokens is None:
                await read_texts(model, long, most=None)
            fields = [field for field, _ in texts]
            screened = await screened_prompts([text for _, text in texts], content, fields=fields)
            texts = list(zip(fields, screened, strict=True))
        for field, tokens in await self.tokens(request, model, texts):
            generation.add_text(tokens, field, priority=request.priority)
        return self.reply(request, model, texts)

    def generation(
        self, model: ServedModel, record: CallRecord, content: CallContent | None, sight: Sight | None
    ) -> Generation:
        """As `Call.generation`."""
        return PoolingGeneration(
            model, record.principal, arrived=record.started, content=content, sight=sight
        )

    async def send(
        self, request: P, answer: PooledReply, generation: Generation, send: Send, record: CallRecord
    ) -> None:
        """Waits for all numbers."""
        while not generation.done:
            await generation.take(per_token=False)
        if not isinstance(generation, PoolingGeneration):
            raise TypeError("another generation than this endpoint's")
        tokens = generation.num_read
        usage = PoolingUsage(prompt_tokens=tokens, total_tokens=tokens)
        await respond(send, 200, answer.body(generation.vectors, usage))


def inputs_of(request: InputFields) -> list[Text]:
    """The texts of `input`; raises a 400 for too many."""
    given = split_prompt(request.input, field="input")
    if len(given) > MAX_INPUTS:
        raise bad_field("input", f"has {len(given)} texts; at most {MAX_INPUTS} in one request")
    if isinstance(request.input, str) or isinstance(request.input[0], int):
        return [("input", given[0])]
    return [(f"input[{i}]", text) for i, text in enumerate(given)]


def most_tokens(request: PoolingFields, model: ServedModel, *, least: int) -> int | None:
    """Tokens that a text is cut to; None where it may not be cut. Raises a 400 for fewer than `least`."""
    asked = request.truncate_prompt_tokens
    if asked is None or asked == -1:
        return None if asked is None else model.window
    if not least <= asked <= model.window:
        accepted = f"{least} to {model.window}, or -1 for the most that {model.name} takes"
        raise bad_field("truncate_prompt_tokens", f"is {asked}; accepted: {accepted}", code="invalid_value")
    return asked
