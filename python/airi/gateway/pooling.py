"""Running the texts of one HTTP request through a model that reads them whole: each is a request of the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import numpy as np

from airi.errors import ExecutionError, QueueFullError, RequestError, error_from_code
from airi.gateway.choice import Choice, Piece
from airi.gateway.errors import ApiError, bad_field
from airi.gateway.generation import Generation
from airi.gateway.metrics import ChoiceTimer
from airi.gateway.models import ServedModel
from airi.gateway.prompts import ITEM_CHARACTERS, check_text, in_thread_if_long, probe
from airi.sampling_params import SamplingParams
from airi.text import TextReader, TextStream
from airi.transport import GenerateRequest, Output, error_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PooledChoice", "PoolingGeneration", "Text", "read_pairs", "read_text", "read_texts"]

Text = tuple[str, str | list[int]]
"""The field of a text, and the text, or the ids of all its tokens."""

_NO_SAMPLING: Final = SamplingParams(max_tokens=1, temperature=0.0)


class PooledChoice(Choice):
    """What the model gives for one text."""

    __slots__ = ("field", "vector")

    def __init__(
        self, index: int, request: GenerateRequest, text: TextStream, timer: ChoiceTimer, field: str
    ) -> None:
        """`field`: of the text in the request."""
        super().__init__(index, request, text, timer)
        self.field = field
        self.vector: bytes | None = None
        """Little-endian float32, once it has ended."""

    def advance(self, output: Output, arrived: float, at: float, *, per_token: bool) -> list[Piece]:
        """Takes the numbers; there is no text."""
        self.vector, self.finish_reason = output.vector, output.finish_reason
        return []


class PoolingGeneration(Generation):
    """All texts of one HTTP request in the engine; otherwise as `Generation`."""

    def add_text(self, tokens: list[int], field: str, *, priority: int | None) -> None:
        """One more text, all its tokens given, for `begin` to send to the engine."""
        request = GenerateRequest(
            model=self.model.engine_name,
            tokens=GenerateRequest.pack_tokens(tokens),
            params=_NO_SAMPLING,
            tenant=self.principal.number,
            priority=self.principal.priority_of(priority),
            pools=True,
        )
        timer = ChoiceTimer(self.model.metrics)
        choice = PooledChoice(len(self.choices), request, self._no_text, timer, field)
        if self.sight is not None:
            self.sight.asked(choice, request)
        self.choices.append(choice)
        self._unfinished += 1
        self._prepared.append((request, choice))
        self.choices_per_prompt = 1

    @property
    def most(self) -> tuple[int, int]:
        """Tokens of all texts; nothing is generated."""
        return sum(choice.prompt_tokens for choice in self.choices), 0

    @property
    def num_read(self) -> int:
        """Tokens of texts whose numbers have come."""
        return sum(choice.prompt_tokens for choice in self.choices if choice.finish_reason is not None)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[texts, numbers], once all have ended."""
        found = [choice.vector for choice in self.choices if isinstance(choice, PooledChoice)]
        data = b"".join([vector for vector in found if vector is not None])
        return np.frombuffer(data, "<f4").reshape(len(self.choices), -1)

    def _check_end(self, output: Output) -> None:
        """As `Generation._check_end`; what is wrong with a text is said of its field."""
        info = output.error
        error = None if info is None else error_of(info)
        is_own = isinstance(error, RequestError | ExecutionError) and not isinstance(error, QueueFullError)
        for choice in self.choices if is_own else ():
            if (
                info is not None
                and choice.request_id == output.request_id
                and isinstance(choice, PooledChoice)
            ):
                raise error_from_code(info.code, f"{choice.field}: {info.message}", choice.field)
        super()._check_end(output)

    @cached_property
    def _no_text(self) -> TextStream:
        return self.model.tokenizer.stream()


async def read_texts(model: ServedModel, texts: Sequence[Text], *, most: int | None) -> list[list[int]]:
    """All tokens of each text, those around it too, cut to `most` where that is given.

    Raises for the first that is empty, too long or has unknown ids.
    """
    return await in_thread_if_long(partial(_texts, model, texts, most), _size(texts))


async def read_text(model: ServedModel, text: str, *, add_special_tokens: bool) -> list[int]:
    """Tokens of a text of any length, as the model would read it."""
    reader = _reader(model)
    (content,) = await in_thread_if_long(lambda: reader.contents([text]), len(text))
    return reader.whole(content) if add_special_tokens else content


async def read_pairs(
    model: ServedModel, pairs: Sequence[tuple[Text, Text]], *, most: int | None
) -> list[list[int]]:
    """As `read_texts`, of pairs of texts. What is said of a pair is said of its second."""
    return await in_thread_if_long(
        partial(_pairs, model, pairs, most), _size([text for pair in pairs for text in pair])
    )


def _size(texts: Sequence[Text]) -> int:
    return sum(len(text) + ITEM_CHARACTERS for _, text in texts) - ITEM_CHARACTERS


def _texts(model: ServedModel, texts: Sequence[Text], most: int | None) -> list[list[int]]:
    reader, contents = _reader(model), _contents(model, texts, most)
    found = []
    for field, text in texts:
        if not text:
            raise _empty(field)
        if isinstance(text, str):
            tokens = reader.whole(contents[text], most=most)
        else:
            tokens = text if most is None else reader.cut(text, most)
        check_text(model, tokens, field=field)
        found.append(tokens)
    return found


def _pairs(model: ServedModel, pairs: Sequence[tuple[Text, Text]], most: int | None) -> list[list[int]]:
    reader, contents = _reader(model), _contents(model, [text for pair in pairs for text in pair], most)
    found = []
    for (_, first), (field, second) in pairs:
        tokens = reader.pair(contents[str(first)], contents[str(second)], most=most)
        check_text(model, tokens, field=field)
        found.append(tokens)
    return found


def _contents(model: ServedModel, texts: Sequence[Text], most: int | None) -> dict[str, list[int]]:
    """By text, its own tokens. Raises for a text without any, and for one that is clearly too long."""
    fields: dict[str, str] = {}
    for field, text in texts:
        if isinstance(text, str):
            fields.setdefault(text, field)
    for text, field in fields.items() if most is None else ():
        probe(model, text, field)
    contents = dict(zip(fields, _reader(model).contents(list(fields)), strict=True))
    for field, text in texts:
        if isinstance(text, str) and not contents[text]:
            raise _empty(field)
    return contents


def _empty(field: str) -> ApiError:
    return bad_field(field, "is empty; at least one token is needed", code="empty_prompt")


def _reader(model: ServedModel) -> TextReader:
    if model.reader is None:
        raise TypeError(f"{model.name} reads no texts whole")
    return model.reader
