"""The form that a request wants its text to have, and by which of its fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from airi.errors import RequestError
from airi.gateway.errors import bad_field
from airi.gateway.openai.schemas_common import SamplingFields
from airi.structured_output import StructuredOutput

__all__ = ["Form", "made", "requested_form"]

_FIELD = re.compile(r"structured(?:\.schemas\[(\d+)\])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the engine is to enforce."""

    structured: StructuredOutput
    field: str
    """Of the request."""
    schema_fields: tuple[str, ...] = ()
    """Those that the schemas inside a grammar come from, in order."""

    def named(self, error: RequestError) -> RequestError:
        """An error of the engine's about this form, by the request's own field."""
        found = _FIELD.fullmatch(error.field or "")
        if found is None:
            return error
        field = self.field
        if found[1] is not None and int(found[1]) < len(self.schema_fields):
            field = self.schema_fields[int(found[1])]
        return RequestError(f"{field}: {str(error).partition(': ')[2]}", field=field)


def made(field: str, make: Callable[[], StructuredOutput]) -> Form:
    """A form from the value of a field; raises a 400 for one of a wrong shape."""
    try:
        return Form(structured=make(), field=field)
    except RequestError as error:
        raise bad_field(field, str(error).partition(": ")[2]) from None


def requested_form(request: SamplingFields) -> Form | None:
    """The form that the fields which other servers have for it ask for; a 400 where several do, or do it wrongly."""
    found = [made(field, make) for field, make in _requested(request)]
    if len(found) > 1:
        raise bad_field(found[1].field, f"cannot be combined with {found[0].field}: a text has one form")
    return found[0] if found else None


def _requested(request: SamplingFields) -> Iterator[tuple[str, Callable[[], StructuredOutput]]]:
    outputs = request.structured_outputs
    if outputs is not None:
        given = list(
            _given("structured_outputs.", outputs.json, outputs.regex, outputs.choice, outputs.grammar)
        )
        if outputs.json_object:
            given.append(("structured_outputs.json_object", StructuredOutput.json_object))
        if not given:
            raise bad_field("structured_outputs", "give one of json, regex, choice, grammar and json_object")
        yield from given
    yield from _given(
        "guided_", request.guided_json, request.guided_regex, request.guided_choice, request.guided_grammar
    )


def _given(
    prefix: str, json: Any, regex: str | None, choice: list[str] | None, grammar: str | None
) -> Iterator[tuple[str, Callable[[], StructuredOutput]]]:
    for name, value, make in (
        ("json", json, StructuredOutput.json_schema),
        ("regex", regex, StructuredOutput.regex),
        ("choice", choice, StructuredOutput.choice),
        ("grammar", grammar, StructuredOutput.grammar),
    ):
        if value is not None:
            yield f"{prefix}{name}", lambda make=make, value=value: make(value)  # type: ignore[misc]
