"""Calls of other APIs as chats or completions: what becomes of fields, and errors by the names that those have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec

from airi.errors import AiriError
from airi.gateway.errors import ApiError, ForeignError, api_error_from, bad_field, invalid_value
from airi.gateway.openai.schemas_chat import ChatCompletionRequest
from airi.gateway.openai.schemas_completions import CompletionRequest
from airi.gateway.prompts import in_thread_if_long

__all__ = ["TRANSLATED", "Places", "TranslatedChat", "TranslatedText", "converted", "translated"]

T = TypeVar("T")

_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\[\d+\])*")


class Places:
    """Where in the request that came stands what its chat or completion is made of."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        """`fields`: names of fields by those of what it becomes."""
        self._fields = dict(fields)
        self._places = dict(fields)

    def put(self, field: str, place: str) -> None:
        """What is at `field` of what it becomes, or below it, came from `place`."""
        self._places[field] = place

    def of(self, field: str) -> str:
        """The place of a field of what it becomes: that of the nearest field above it whose place is known."""
        end = len(field)
        while end > 0:
            place = self._places.get(field[:end])
            if place is not None:
                return place + field[end:]
            end = max(field.rfind(".", 0, end), field.rfind("[", 0, end))
        return field

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within it, failures of calls are raised by the places of what they name."""
        try:
            yield
        except AiriError as error:
            known = api_error_from(error)
            if known is None:
                raise
            raise self.named(known) from None

    def named(self, error: ApiError) -> ApiError:
        """The error by the places of what it names."""
        if error.param is None:
            return error
        message = error.message
        begin = _PATH.match(message)
        if begin is not None:
            rest = message[begin.end() :].replace("max_tokens", self._fields.get("max_tokens", "max_tokens"))
            message = self.of(begin[0]) + rest
        if message == error.message and self.of(error.param) == error.param:
            return error
        kind = ForeignError if isinstance(error, ForeignError) else ApiError
        return kind(
            error.status,
            message,
            type=error.type,
            param=self.of(error.param),
            code=error.error_code,
            headers=error.headers,
        )


class TranslatedChat(ChatCompletionRequest, kw_only=True):
    """A chat that a request of another API has become."""

    places: Places


class TranslatedText(CompletionRequest, kw_only=True):
    """A completion that a request of another API has become."""

    places: Places


TRANSLATED = (TranslatedChat, TranslatedText)


async def translated(read: Callable[[bytes], T], body: bytes) -> T:
    """What `read` makes of a body, in a thread where that may take long.

    It looks at the body item by item: of many small ones a byte costs more than tokenising a character.
    """
    return await in_thread_if_long(partial(read, body), len(body))


def converted(value: Mapping[str, Any], kinds: Mapping[str, type[T]], place: str, *, default: str = "") -> T:
    """A value of the kind that its `type` names, or `default` where it has none. Raises a 400 for any other."""
    kind = value.get("type") or default
    if not isinstance(kind, str) or kind not in kinds:
        shown = repr(kind[:100]) if isinstance(kind, str) else f"a {type(kind).__name__}"
        raise bad_field(
            f"{place}.type", f"{shown} is not served here; accepted: {', '.join(kinds)}", code="invalid_value"
        )
    try:
        return msgspec.convert(value, kinds[kind])
    except msgspec.ValidationError as error:
        raise invalid_value(error, value, kinds[kind], prefix=place, refused={}) from None
