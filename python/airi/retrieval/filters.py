"""Filters on rows: a small JSON form that users of MongoDB, Chroma and Qdrant know, read once into a tree.

    {"lang": "de"}                                  equal, or among the values of a list
    {"year": {"$gte": 2020, "$lt": 2024}}           $eq $ne $gt $gte $lt $lte $in $nin $exists $not
    {"$or": [{"lang": "de"}, {"$not": {"team": {"$exists": true}}}]}

`a.b` names a field within an object. `id`, `source` and `time` are those of the row itself. A field that is null is not
there; `$ne` and `$nin` hold of rows that do not have the field, as in MongoDB; values of different types are never
equal, nor in order.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from airi.errors import RequestError
from airi.retrieval.records import OWN_FIELDS, Row

__all__ = [
    "And",
    "Compare",
    "Exists",
    "FieldTypes",
    "Filter",
    "In",
    "Not",
    "Or",
    "check_declared",
    "check_fields",
    "leaves",
    "parse",
]

Scalar: TypeAlias = "str | float | bool"
FieldTypes = Mapping[str, Literal["string", "number", "boolean"]]
"""Declared fields of metadata; a list of such values is fine, too."""
_OWN_TYPES: dict[str, str] = {"id": "string", "source": "string", "time": "number"}
_INGESTED: FieldTypes = {
    "chunk.ordinal": "number",
    "chunk.start": "number",
    "chunk.end": "number",
    "chunk.prefix_chars": "number",
    "chunk.headings": "string",
    "chunk.page": "number",
    "chunk.last_page": "number",
}
"""What rows of documents have beside their own metadata: nobody need declare it."""
_ORDERED = ("$gt", "$gte", "$lt", "$lte")
_OPERATORS = ("$eq", "$ne", *_ORDERED, "$in", "$nin", "$exists", "$not")
_JOINS = ("$and", "$or", "$not")
_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Compare:
    """A value of the field is so to `value`."""

    field: str
    operator: Literal["$gt", "$gte", "$lt", "$lte"]
    value: str | float


@dataclass(frozen=True, slots=True)
class In:
    """A value of the field is one of these."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """The row has the field."""

    field: str


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Filter, ...]


Filter: TypeAlias = "Compare | In | Exists | Not | And | Or"


def parse(written: Any, fields: FieldTypes | None = None) -> Filter:
    """The tree of a filter. RequestError, with the nearest name, for an operator or field that there is not."""
    return _Reader(fields).filter(written, "filter", 0)


def _refuse(where: str, problem: str) -> RequestError:
    return RequestError(f"{where} {problem}", field="filter")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    return "number" if isinstance(value, int | float) else type(value).__name__


class _Reader:
    def __init__(self, fields: FieldTypes | None) -> None:
        self._types = None if fields is None else {**fields, **_OWN_TYPES, **_INGESTED}

    def filter(self, written: Any, where: str, depth: int) -> Filter:
        if depth > _MAX_DEPTH:
            raise _refuse(where, f"is nested deeper than {_MAX_DEPTH}")
        if not isinstance(written, Mapping):
            raise _refuse(where, f'is {str(written)[:40]}; it must be an object such as {{"lang": "de"}}')
        parts = [self._entry(key, value, where, depth) for key, value in written.items()]
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _entry(self, key: Any, value: Any, where: str, depth: int) -> Filter:
        if not isinstance(key, str) or not key:
            raise _refuse(where, f"has the key {key!r}; keys are fields, $and, $or or $not")
        if not key.startswith("$"):
            return self._field(key, value, f"{where}.{key}", depth)
        if key not in _JOINS:
            raise _refuse(
                f"{where}.{key}", f"is no operator here; it may be {', '.join(_JOINS)}{_nearest(key, _JOINS)}"
            )
        if key == "$not":
            return Not(self.filter(value, f"{where}.$not", depth + 1))
        if not isinstance(value, list | tuple) or not value:
            raise _refuse(f"{where}.{key}", "must be a list of filters that is not empty")
        parts = [self.filter(part, f"{where}.{key}[{i}]", depth + 1) for i, part in enumerate(value)]
        return (And if key == "$and" else Or)(tuple(parts))

    def _field(self, name: str, value: Any, where: str, depth: int) -> Filter:
        if self._types is not None and name not in self._types:
            known = ", ".join(sorted(self._types))
            raise _refuse(where, f"is no field of this collection ({known}){_nearest(name, self._types)}")
        if not isinstance(value, Mapping):
            return self._is(name, "$eq", value, where)
        if not value:
            raise _refuse(where, f"has no operator; it may have {', '.join(_OPERATORS)}")
        parts = [self._operation(name, op, operand, f"{where}.{op}", depth) for op, operand in value.items()]
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _operation(self, name: str, operator: Any, operand: Any, where: str, depth: int) -> Filter:
        if operator not in _OPERATORS:
            shown = ", ".join(_OPERATORS)
            raise _refuse(where, f"is no operator; it may be {shown}{_nearest(str(operator), _OPERATORS)}")
        if operator == "$not":
            if depth > _MAX_DEPTH or not isinstance(operand, Mapping):
                raise _refuse(where, "must be an object of operators")
            return Not(self._field(name, operand, where, depth + 1))
        if operator == "$exists":
            if not isinstance(operand, bool):
                raise _refuse(where, f"is {str(operand)[:40]}; it must be true or false")
            return Exists(name) if operand else Not(Exists(name))
        if operator in ("$in", "$nin"):
            if not isinstance(operand, list | tuple):
                raise _refuse(where, "must be a list of values")
            values = tuple(self._scalar(name, value, f"{where}[{i}]") for i, value in enumerate(operand))
            return In(name, values) if operator == "$in" else Not(In(name, values))
        return self._is(name, operator, operand, where)

    def _is(self, name: str, operator: str, operand: Any, where: str) -> Filter:
        if operand is None and operator in ("$eq", "$ne"):
            return Not(Exists(name)) if operator == "$eq" else Exists(name)
        value = self._scalar(name, operand, where)
        if operator == "$eq":
            return In(name, (value,))
        if operator == "$ne":
            return Not(In(name, (value,)))
        if isinstance(value, bool):
            raise _refuse(where, "is true or false, which have no order; it must be a number or a text")
        return Compare(name, operator, value)  # type: ignore[arg-type]

    def _scalar(self, name: str, value: Any, where: str) -> Scalar:
        if isinstance(value, list | tuple):
            raise _refuse(where, 'is a list; {"$in": [...]} asks for one of several values')
        if not isinstance(value, str | int | float) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise _refuse(where, f"is {str(value)[:40]}; it must be a text, a finite number, true or false")
        if self._types is not None and _type_of(value) != self._types[name]:
            raise _refuse(where, f"is a {_type_of(value)}; {name} is a {self._types[name]}")
        if isinstance(value, str | bool):
            return value
        try:
            return float(value)
        except OverflowError:
            raise _refuse(where, "is a number beyond all that rows can have") from None


def leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Fields of metadata with their values, those of objects as `a.b`; values of lists one by one."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for inner in value:
            if not isinstance(inner, Mapping | list | tuple):
                yield path, inner
    else:
        yield path, value


def check_fields(rows: Iterable[Row], fields: FieldTypes) -> None:
    """RequestError for the first row with a field that is not declared, or of another type."""
    types = {**fields, **_INGESTED}
    for number, row in enumerate(rows):
        for name, value in leaves(row.metadata):
            where = f"rows[{number}].metadata.{name}"
            if name not in types:
                raise RequestError(
                    f"{where} of row {row.id!r} is no declared field ({', '.join(sorted(fields))})"
                    f"{_nearest(name, fields)}",
                    field=where,
                )
            if value is not None and _type_of(value) != types[name]:
                raise RequestError(
                    f"{where} of row {row.id!r} is a {_type_of(value)}; it is declared a {types[name]}",
                    field=where,
                )


def check_declared(fields: FieldTypes) -> None:
    """RequestError for a declaration of what cannot be a field, or of a type that there is not."""
    for name, kind in fields.items():
        if name in (*OWN_FIELDS, *_INGESTED) or not name or name.startswith("$"):
            there = ", ".join((*OWN_FIELDS, *_INGESTED))
            raise RequestError(f"fields.{name} cannot be declared: {there} are there", field="fields")
        if kind not in ("string", "number", "boolean"):
            raise RequestError(
                f"fields.{name} is {kind!r}; it must be string, number or boolean", field="fields"
            )
