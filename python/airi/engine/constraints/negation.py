"""What a JSON Schema does not take, said in keywords that grammars can be made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from airi.engine.constraints.disjoint import Disjointness, Facts, kind_of, same_text

__all__ = ["Negation", "any_of"]

Json = dict[str, Any]
Alternatives = list[Json] | None
"""Of which a value fits one; None where there are no words for it."""

_MAX_ASKED = 2000
"""Of one schema, so that what refers to itself in many ways ends."""
_MAX_DEPTH = 12
_MAX_ALTERNATIVES = 16
_MAX_NUMBERS = 4
_MAX_CHARACTERS = 500
"""Of the texts that a pattern leaves out."""
_UNKNOWN = frozenset(
    (
        *("$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef"),
        *(
            "additionalItems",
            "contains",
            "maxContains",
            "minContains",
            "prefixItems",
            "unevaluatedItems",
            "uniqueItems",
        ),
        *("dependencies", "dependentRequired", "dependentSchemas", "maxProperties", "patternProperties"),
        *("propertyNames", "unevaluatedProperties"),
        *("format", "multipleOf", "pattern"),
        *("items", "minProperties", "properties", "required"),
    )
)
"""What asserts something that cannot be negated."""
_BESIDE = {
    "additionalProperties": ("properties", "patternProperties"),
    "items": ("prefixItems", "$schema"),
    "minimum": ("exclusiveMinimum",),
    "maximum": ("exclusiveMaximum",),
}
"""Keywords on which others depend."""
_ALONE = frozenset(("$dynamicRef", "$recursiveRef", "if", "then", "else", "contains", "minContains", "maxContains",
                    "additionalItems", "unevaluatedItems", "unevaluatedProperties"))  # fmt: skip
_REVERSED: Final = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}


def any_of(alternatives: list[Json]) -> Json | bool:
    """The schema of all that fits one of these."""
    if not alternatives:
        return False
    return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}


class Negation:
    """Says what schemas of a document do not take.

    *Thread safety*: none. *Invariant*: of the values within some facts, what is said takes exactly those that the
    schema does not.
    """

    def __init__(self, proof: Disjointness, *, siblings_count: bool) -> None:
        self._proof = proof
        self._siblings_count = siblings_count
        self._asked = 0

    def of(self, schema: Any, within: Facts, depth: int = 0) -> Alternatives:
        """What values with these facts in common must fit not to fit a schema, as the user wrote it."""
        self._asked += 1
        if isinstance(schema, bool):
            return [] if schema else [{}]
        if not isinstance(schema, dict) or depth > _MAX_DEPTH or self._asked > _MAX_ASKED:
            return None
        if "$ref" in schema and not self._siblings_count:
            schema = {"$ref": schema["$ref"]}
        out: list[Json] = []
        for key, value in schema.items():
            found = (
                []
                if _is_given(key, schema, within)
                else self._of_keyword(key, value, schema, within, depth + 1)
            )
            if found is None:
                return None
            out += [each for each in found if _may_be(each, within)]
        return out if len(out) <= _MAX_ALTERNATIVES else None

    def _of_keyword(self, key: str, value: Any, schema: Json, within: Facts, depth: int) -> Alternatives:
        if key in _REVERSED:
            return _reversed(key, value)
        match key:
            case "type":
                return _other_types(value, within)
            case "const" | "enum":
                return _other_values([value] if key == "const" else value, within)
            case "required" if isinstance(value, list) and all(isinstance(name, str) for name in value):
                return [
                    {"type": "object", "properties": {name: False}}
                    for name in value
                    if name not in within.required
                ]
            case "minProperties" if isinstance(value, int) and value <= max(1, len(within.required)):
                there = value <= len(within.required)
                return [] if there else [{"type": "object", "additionalProperties": False}]
            case "properties" if isinstance(value, dict):
                return self._of_properties(value.items(), within, depth)
            case "additionalProperties":
                return self._of_others(value, schema, within, depth)
            case "items" if value is True or value == {}:
                return []
            case "not":
                return [value] if isinstance(value, dict) else [{}] if value is True else []
            case "$ref":
                target = self._proof.target(value)
                return None if target is None else self.of(target, within, depth)
            case "if":
                return self._of_condition(schema, within, depth)
            case "allOf" | "anyOf" | "oneOf" if isinstance(value, list):
                return self._of_list(key, value, within, depth)
        return None if key in _UNKNOWN else []

    def _of_properties(self, named: Iterable[tuple[str, Any]], within: Facts, depth: int) -> Alternatives:
        out: list[Json] = []
        for name, schema in named:
            given = within.of_property(name)
            if given is False:
                continue
            there: Json = {"type": "object", "required": [name]}
            if not self._proof.disjoint(given, schema):
                found = self.of(schema, self._proof.facts(given), depth)
                if found is None:
                    return None
                if not found:
                    continue
                there["properties"] = {name: any_of(found)}
            out.append(there)
        return out

    def _of_others(self, value: Any, schema: Json, within: Facts, depth: int) -> Alternatives:
        """Of properties that are not listed: known where no others may be there."""
        if value is True or value == {}:
            return []
        closed = [set(each.get("properties", ())) for each in within.objects if _is_closed(each)]
        if not closed or schema.get("patternProperties"):
            return None if "object" in within.kinds else []
        names = sorted(set.intersection(*closed) - set(schema.get("properties", ())))
        return self._of_properties([(name, value) for name in names], within, depth)

    def _of_condition(self, schema: Json, within: Facts, depth: int) -> Alternatives:
        out: list[Json] = []
        condition = schema["if"]
        otherwise = self.of(condition, within, depth)
        if otherwise is None:
            return None
        for holds, key in ((condition, "then"), (any_of(otherwise), "else")):
            found = self.of(schema.get(key, True), within, depth)
            if found is None:
                return None
            out += [{"allOf": [holds, each]} for each in found]
        return out

    def _of_list(self, key: str, schemas: list[Any], within: Facts, depth: int) -> Alternatives:
        found = [self.of(each, within, depth) for each in schemas]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        if key == "allOf":
            return [each for alternatives in known for each in alternatives]
        if key == "oneOf" and not all(
            self._proof.disjoint(one, other) for i, one in enumerate(schemas) for other in schemas[:i]
        ):
            return None
        return [{"allOf": [any_of(each) for each in known]}] if all(known) else []


def _may_be(schema: Json, within: Facts) -> bool:
    """Whether values with these facts may be of its type, where it is known."""
    kind = schema.get("type")
    return not isinstance(kind, str) or "$ref" in schema or kind == "integer" or kind in within.kinds


def _is_given(key: str, schema: Json, within: Facts) -> bool:
    """Whether the facts say the same by the same keyword."""
    if key in _ALONE:
        return False
    keys = (key, *_BESIDE.get(key, ()))
    mine = [schema.get(each) for each in keys]
    return any(
        key in other and same_text([other.get(each) for each in keys]) == same_text(mine)
        for other in within.objects
    )


def _is_closed(schema: Json) -> bool:
    properties = schema.get("properties", {})
    return (
        schema.get("additionalProperties") is False
        and not schema.get("patternProperties")
        and isinstance(properties, dict)
    )


def _reversed(key: str, value: Any) -> Alternatives:
    kind, other, step = _REVERSED[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return [{"type": kind, other: value + step}] if value + step >= 0 or kind == "number" else []


def _other_types(kinds: Any, within: Facts) -> Alternatives:
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list):
        return None
    banned = set(kinds)
    if "integer" in banned and "number" not in banned and "number" in within.kinds:
        if not within.are_integers:
            return None  # what is left of numbers has no word
        banned.add("number")
    left = sorted(within.kinds - banned)
    return [{"type": left}] if left else []


def _other_values(values: Any, within: Facts) -> Alternatives:
    if not isinstance(values, list):
        return None
    banned = set(map(same_text, values))
    if within.values is not None:
        left = [value for value in within.values if same_text(value) not in banned]
        return [{"enum": left}] if left else []
    out: list[Json] = []
    for kind in sorted(within.kinds):
        found = _others_of_kind(kind, [value for value in values if kind_of(value) == kind])
        if found is None:
            return None
        out += found
    return out


def _others_of_kind(kind: str, values: list[Any]) -> Alternatives:
    """All values of a type but these."""
    if not values:
        return [{"type": kind}]
    match kind:
        case "null":
            return []
        case "boolean":
            left = [value for value in (True, False) if value not in values]
            return [{"enum": left}] if left else []
        case "string":
            pattern = _none_of(values)
            return (
                [{"type": "string", "pattern": f"^{pattern}$"}]
                if sum(map(len, values)) <= _MAX_CHARACTERS
                else None
            )
        case "number" if len(values) <= _MAX_NUMBERS:
            edges = sorted(set(values))
            below: list[Json] = [{"exclusiveMaximum": edge} for edge in edges] + [{}]
            above: list[Json] = [{}] + [{"exclusiveMinimum": edge} for edge in edges]
            return [{"type": "number", **low, **high} for low, high in zip(above, below, strict=True)]
        case "array" if values == [[]]:
            return [{"type": "array", "minItems": 1}]
    return None


def _none_of(texts: list[str]) -> str:
    """A regular expression for every text but these."""
    after: dict[str, list[str]] = {}
    for text in texts:
        if text:
            after.setdefault(text[0], []).append(text[1:])
    firsts = "".join(map(re.escape, sorted(after)))
    others = f"[^{firsts}](?:.|\\n)*" if after else "(?:.|\\n)+"
    alternatives = [others, *(re.escape(first) + _none_of(rest) for first, rest in sorted(after.items()))]
    return f"(?:{'|'.join(alternatives)}){'' if '' in texts else '?'}"
