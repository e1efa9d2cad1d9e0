"""Parts of JSON Schemas in words that grammars can be made of: the same language, or where said a smaller one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["rewritten"]

Json = dict[str, Any]

_MAX_DEPENDENCIES = 4
"""Each doubles the alternatives."""

_DAY = (
    "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29"
)
_CLOCK = (
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]+)?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    "|23:59:60(?:\\.[0-9]+)?(?:[zZ]|[+-]00:00)"
)
_FORMATS: Final[dict[str, Json]] = {
    "date": {"pattern": f"^(?:{_DAY})$"},
    # Leap seconds in universal time alone.
    "time": {"pattern": f"^(?:{_CLOCK})$"},
    "date-time": {"pattern": f"^(?:{_DAY})[tT](?:{_CLOCK})$"},
    # Two hyphens together would begin an encoded label, of which few are right.
    "hostname": {"pattern": "^[^-]+(?:-[^-]+)*$", "maxLength": 253},
}
"""What formats mean beyond what the library makes of them."""
_REPLACED = ("date", "time", "date-time")

_SPACE = "\\t\\n\\x0b\\f\\r \\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff"
"""What `\\s` is in the regular expressions of JSON Schema."""


def rewritten(schema: Json) -> Json:
    """An object schema, of which the parts are rewritten already, in other words where there are any for it."""
    for rewrite in _REWRITES:
        schema = rewrite(schema)
    return schema


def _and(schema: Json, *further: Json) -> Json:
    """Both; what is there already stays in its place, as it tells the order of keys."""
    if not further:
        return schema
    return {**schema, "allOf": [*schema.get("allOf", ()), *further]}


def _without(schema: Json, *keys: str) -> Json:
    return {key: value for key, value in schema.items() if key not in keys}


def _format(schema: Json) -> Json:
    name = schema.get("format")
    if not isinstance(name, str) or name not in _FORMATS:
        return schema
    rest = _without(schema, "format") if name in _REPLACED else schema
    return _and(rest, _FORMATS[name])


def _pattern(schema: Json) -> Json:
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and "\\" in pattern:
        schema = {**schema, "pattern": _ecma(pattern)}
    named = schema.get("patternProperties")
    if isinstance(named, dict) and any("\\" in name for name in named):
        schema = {**schema, "patternProperties": {_ecma(name): value for name, value in named.items()}}
    return schema


def _ecma(pattern: str) -> str:
    """White space as JSON Schema's regular expressions have it."""
    out, at, inside = [], 0, False
    while at < len(pattern):
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(piece)
        if piece == "\\s":
            piece = _SPACE if inside else f"[{_SPACE}]"
        elif piece == "\\S":
            piece = f"[^{_SPACE}]"
        elif piece == "[":
            inside = True
        elif piece == "]":
            inside = False
        out.append(piece)
    return "".join(out)


def _dependencies(schema: Json) -> Json:
    """A property that is not there, or what is asked where it is."""
    found: list[Json] = []
    for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
        needs = schema.get(keyword, {})
        if not isinstance(needs, dict) or not all(isinstance(each, dict | list) for each in needs.values()):
            return schema
        for name, need in needs.items():
            there: Json = {"required": [name]}
            if isinstance(need, list):
                there = {"required": [name, *(each for each in need if each != name)]}
            else:
                there["allOf"] = [need]
            found.append({"anyOf": [{"properties": {name: False}}, there]})
    if not found or len(found) > _MAX_DEPENDENCIES:
        return schema
    return _and(_without(schema, "dependencies", "dependentRequired", "dependentSchemas"), *found)


def _property_names(schema: Json) -> Json:
    """Names of a pattern, where no others are listed."""
    names = schema.get("propertyNames")
    if (
        not isinstance(names, dict)
        or set(names) - {"pattern", "type"}
        or names.get("type", "string") != "string"
    ):
        return schema
    if "properties" in schema or "patternProperties" in schema or not isinstance(names.get("pattern"), str):
        return schema
    rest = _without(schema, "propertyNames", "additionalProperties")
    values = schema.get("additionalProperties", {})
    return {**rest, "patternProperties": {names["pattern"]: values}, "additionalProperties": False}


def _unevaluated(schema: Json) -> Json:
    """Where nothing beside it evaluates properties it says what additionalProperties does."""
    in_place = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "not", "contains")
    if schema.get("unevaluatedProperties") is not False or any(name in schema for name in in_place):
        return schema
    return {"additionalProperties": False, **_without(schema, "unevaluatedProperties")}


_REWRITES: Final[tuple[Callable[[Json], Json], ...]] = (
    _unevaluated,
    _format,
    _pattern,
    _dependencies,
    _property_names,
)
