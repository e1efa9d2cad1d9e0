"""The texts of one call of a model that reads texts whole, between the engine's outputs and the caller's numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from airi.errors import AiriError, ContextLengthError, EngineError, RequestError, error_from_code
from airi.outputs import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airi.engine import Engine
    from airi.text import TextReader

__all__ = ["TextBatch", "listed", "read_pairs", "read_texts"]


class TextBatch:
    """All texts of one call. *Thread safety*: none; `LLM` guards it."""

    def __init__(self, texts: Sequence[list[int]], size: int) -> None:
        """`texts`: all tokens of each; `size`: numbers that a text gives."""
        self._size = size
        self.waiting = deque(enumerate(texts))
        """Not yet given to the engine, in order."""
        self.running: dict[int, int] = {}
        """Places of texts, by the engine's request id."""
        self.ready: deque[int] = deque()
        """Places of texts whose numbers have come since this was last emptied."""
        self.failure: AiriError | None = None
        """What ended the batch early."""
        self._vectors: list[bytes] = [b""] * len(texts)

    @property
    def done(self) -> bool:
        """Whether all numbers are there, or a text has failed."""
        return self.failure is not None or not (self.waiting or self.running)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[texts, numbers], once it is done."""
        return np.frombuffer(b"".join(self._vectors), "<f4").reshape(len(self._vectors), self._size)

    def submit(self, engine: Engine, request_id: int, model: str) -> None:
        """Gives the engine the text that waits longest. Raises QueueFullError and other RequestErrors."""
        place, tokens = self.waiting[0]
        engine.add_pooling(request_id, model, tokens)
        self.waiting.popleft()
        self.running[request_id] = place

    def advance(self, request_id: int, output: Output) -> bool:
        """Takes what the engine gives; whether it should drop the request."""
        place = self.running[request_id]
        if output.error is not None:
            error = output.error
            self.failure = error_from_code(error.code, f"texts[{place}]: {error.message}", error.field)
        elif output.vector is None:
            self.failure = EngineError(f"the engine gave texts[{place}] up: {output.finish_reason}")
        else:
            self._vectors[place] = output.vector
            self.ready.append(place)
            del self.running[request_id]
        return self.failure is not None


def listed(texts: str | Sequence[str], name: str) -> list[str]:
    """One text or several as a list. Raises RequestError."""
    found = [texts] if isinstance(texts, str) else texts
    if not isinstance(found, Sequence) or not all(isinstance(text, str) for text in found):
        raise RequestError(f"{name} must be a text or a list of texts", field=name)
    return list(found)


def read_texts(reader: TextReader, texts: list[str], window: int, *, truncate: bool) -> list[list[int]]:
    """All tokens of each text. Raises RequestError for one that is empty or longer than the window."""
    most = window if truncate else None
    contents = _contents(reader, texts, "texts")
    return _fitting([reader.whole(content, most=most) for content in contents], window, "texts")


def read_pairs(
    reader: TextReader, query: str, documents: list[str], window: int, *, truncate: bool
) -> list[list[int]]:
    """As `read_texts`, of a text with each of several."""
    most = window if truncate else None
    (first,) = _contents(reader, [query], "query")
    pairs = [reader.pair(first, each, most=most) for each in _contents(reader, documents, "documents")]
    return _fitting(pairs, window, "documents")


def _contents(reader: TextReader, texts: list[str], name: str) -> list[list[int]]:
    contents = reader.contents(texts)
    empty = next((i for i, content in enumerate(contents) if not content), None)
    if empty is not None:
        raise RequestError(f"{name}[{empty}] is empty", field=name)
    return contents


def _fitting(texts: list[list[int]], window: int, name: str) -> list[list[int]]:
    for i, tokens in enumerate(texts):
        if len(tokens) > window:
            raise ContextLengthError(
                f"{name}[{i}] has {len(tokens)} tokens; the model takes at most {window}, to which truncate=True cuts",
                field=name,
            )
    return texts
