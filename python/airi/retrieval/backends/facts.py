"""Filters over what is written of a row beside it, for databases that know equality of words and order of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from airi.retrieval.columns import value_at

__all__ = ["equality", "existence", "facts_of", "fields_of", "numbers_of", "plain_values"]


def existence(field: str) -> str:
    """The fact that a row has a field."""
    return f"has {field}"


def equality(field: str, value: Any) -> str:
    """The fact that a value of a field is this one; true is not 1, and 1 is 1.0."""
    kind = "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
    written = repr(float(value)) if kind == "number" else str(value)
    return f"{kind} {field} {written}"


def plain_values(value: Any) -> list[Any]:
    """Those that filters see: a list's own ones, or the value itself."""
    several = value if isinstance(value, list) else [value]
    return [each for each in several if each is not None and not isinstance(each, list | dict)]


def facts_of(fields: dict[str, Any]) -> list[str]:
    """All that may be asked of a row's fields by equality and existence."""
    found = {existence(field): None for field, value in fields.items() if value is not None}
    for field, value in fields.items():
        found.update(dict.fromkeys(equality(field, each) for each in plain_values(value)))
    return list(found)


def numbers_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers of a row, each with its field."""
    return [
        {"field": field, "value": float(each)}
        for field, value in fields.items()
        for each in plain_values(value)
        if not isinstance(each, bool | str)
    ]


def fields_of(metadata: bytes, **own: Any) -> dict[str, Any]:
    """By every name that a filter may have for it, what metadata holds, with the row's own fields."""
    names = dict.fromkeys(_names(msgspec.json.decode(metadata), ""))
    return {name: value_at(metadata, name.split("."), name) for name in names} | own


def _names(value: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, inner in value.items():
        yield prefix + key
        if isinstance(inner, dict):
            yield from _names(inner, f"{prefix}{key}.")
