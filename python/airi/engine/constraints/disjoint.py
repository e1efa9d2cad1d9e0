"""What all values of a JSON Schema have in common, and that no value fits two schemas."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["Disjointness", "Facts", "kind_of", "same_text"]

Json = dict[str, Any]

_KINDS: Final = frozenset(("null", "boolean", "number", "string", "array", "object"))
_MAX_DEPTH = 6
_MAX_QUESTIONS = 20_000
"""Of one schema, so that what refers to itself in many ways ends."""


class Facts:
    """What all values that fit a schema have in common, as far as it was looked at."""

    def __init__(self) -> None:
        self.kinds = _KINDS
        self.are_integers = False
        """Whether all numbers among them are."""
        self.values: list[Any] | None = None
        self.required: set[str] = set()
        self.objects: list[Json] = []
        self.bounds = {kind: [-math.inf, math.inf] for kind in ("number", "string", "array")}
        self.choices: list[list[Any]] = []

    def take(self, schema: Json) -> None:
        """All but what refers to other schemas."""
        kinds = schema.get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if isinstance(kinds, list):
            self.are_integers |= "integer" in kinds and "number" not in kinds
            self.kinds &= {"number" if kind == "integer" else kind for kind in kinds}
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list):
            self.values = values
            self.kinds &= {kind_of(value) for value in values}
        names = schema.get("required")
        if isinstance(names, list):
            self.required |= {name for name in names if isinstance(name, str)}
        self.objects.append(schema)
        for kind, (least, most) in _BOUNDS.items():
            for at, key, tighter in ((0, least, max), (1, most, min)):
                if _is_number(schema.get(key)):
                    self.bounds[kind][at] = tighter(self.bounds[kind][at], schema[key])
        self.choices += [schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)]

    def of_property(self, name: str) -> Json | bool:
        """What the value of a property fits."""
        parts: list[Any] = []
        for schema in self.objects:
            named = schema.get("properties", {})
            if isinstance(named, dict) and name in named:
                parts.append(named[name])
            elif "additionalProperties" in schema and "patternProperties" not in schema:
                parts.append(schema["additionalProperties"])
        return False if False in parts else {"allOf": [each for each in parts if isinstance(each, dict)]}


_BOUNDS: Final = {
    "number": ("minimum", "maximum"),
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
}


class Disjointness:
    """Shows of two schemas of a document that no value fits both.

    *Thread safety*: none. *Invariant*: what it says is so; what it can not show it does not say.
    """

    def __init__(self, root: Json, *, siblings_count: bool) -> None:
        """`siblings_count`: whether keywords beside `$ref` are more than notes."""
        self._root = root
        self._siblings_count = siblings_count
        self._asked = 0
        self._bases: bool | None = None

    def disjoint(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether it can be shown that no value fits both."""
        self._asked += 1
        if one is False or other is False:
            return True
        if not isinstance(one, dict) or not isinstance(other, dict):
            return False
        if depth > _MAX_DEPTH or self._asked > _MAX_QUESTIONS:
            return False
        mine, others = self.facts(one), self.facts(other)
        both_listed = mine.values is not None and others.values is not None
        if both_listed and not set(map(same_text, mine.values or ())) & set(
            map(same_text, others.values or ())
        ):
            return True
        if all(self._apart(kind, mine, others, depth) for kind in mine.kinds & others.kinds):
            return True
        return any(
            all(self.disjoint(branch, against, depth + 1) for branch in branches)
            for facts, against in ((mine, other), (others, one))
            for branches in facts.choices
        )

    def _apart(self, kind: str, mine: Facts, others: Facts, depth: int) -> bool:
        """Whether no value of a type fits both."""
        if kind in mine.bounds:
            (low, high), (other_low, other_high) = mine.bounds[kind], others.bounds[kind]
            if max(low, other_low) > min(high, other_high):
                return True
        if kind != "object":
            return False
        return any(
            self.disjoint(mine.of_property(name), others.of_property(name), depth + 1)
            for name in sorted(mine.required | others.required)
        )

    def facts(self, schema: Any) -> Facts:
        """What all values that fit a schema have in common."""
        facts = Facts()
        for part in self._conjuncts(schema, 0):
            facts.take(part)
        return facts

    def _conjuncts(self, schema: Any, depth: int) -> Iterator[Json]:
        """Schemas that every value of this one fits."""
        if schema is False:
            yield {"enum": []}
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return
        reference = schema.get("$ref")
        if reference is not None:
            yield from self._conjuncts(self.target(reference), depth + 1)
            if not self._siblings_count:
                return
        yield schema
        parts = schema.get("allOf")
        if isinstance(parts, list):
            for part in parts:
                yield from self._conjuncts(part, depth + 1)

    def target(self, reference: Any) -> Any:
        """What a reference means; None where it is not a pointer into the whole document."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        if self._bases is None:
            self._bases = _has_bases(self._root)
        if self._bases or "%" in reference:
            return None
        at: Any = self._root
        for name in reference[1:].split("/")[1:]:
            key = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(at, dict) or key not in at:
                return None
            at = at[key]
        return at if reference == "#" or reference.startswith("#/") else None


def _has_bases(root: Json) -> bool:
    """Whether any part of a document may have another base for its references."""
    waiting: list[Any] = list(root.values())
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("$id", part.get("id")), str):
                return True
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False


def kind_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_text(value: Any) -> str:
    """The same of values that JSON Schema calls equal."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
