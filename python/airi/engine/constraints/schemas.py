"""JSON Schemas before they become grammars: what means nothing is left out, what cannot be exact is refused."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from airi.engine.constraints.choices import Choices
from airi.engine.constraints.rewrites import rewritten

__all__ = ["MAX_PATTERN", "SchemaError", "explained", "prepare", "user_place"]

Json = dict[str, Any]

_OPTIONS: Final[Json] = {
    # One line, with a space after commas and colons or without: with free white space a text need never end.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
_MAX_DEPTH = 100
MAX_PATTERN: Final = 16 * 1024
"""Characters of a regular expression: what it takes to read one grows with the square of its optional pieces."""
_EXACT_INTEGERS = 2**53
"""Larger numbers are not what they seem once they are floats, which numbers of grammars are made from."""

_ONE: Final = frozenset(
    (
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_ANNOTATIONS = frozenset(("$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "contentSchema", "deprecated"))
_FORMATS = frozenset(
    [
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "idn-email",
        "hostname",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "iri",
        "iri-reference",
        "uuid",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
        "regex",
    ]
)
"""That JSON Schema defines. Others are notes to the reader."""
_OLD_DRAFTS = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")
_BEFORE_REF = (
    "$schema",
    "$id",
    "id",
    "$ref",
    "$defs",
    "definitions",
    "$comment",
    "title",
    "description",
    "default",
)


_REPEATED_GROUP = re.compile(r"[+*]\)\{(?:\d*,)?(\d+)\}")
_MAX_PRODUCT = 5000
_MAX_REASON = 300
_MAX_PROBES = 1000
_PROBES_S = 2.0
"""For the place of what is refused: all that look for it share a few threads with those whose forms are fine."""
_DEFINITION = re.compile(r"#/(\$defs|definitions)/([^/]+)")
_QUOTED = re.compile(r'"(\w+)"')
_REASONS: Final = (
    ("Unimplemented keys", None, "{key} is not supported"),
    ("Unknown format", "format", "the format {value!r} is not supported"),
    (
        "oneOf constraints",
        "oneOf",
        "oneOf is supported where no value fits two of its schemas, and that can be shown",
    ),
    ("look-around", "pattern", "patterns with look-around are not supported"),
    ("regex parse error", "pattern", "the pattern is not a regular expression that is supported"),
    (
        "Properties only supported",
        "minProperties",
        "minProperties is supported where all properties are required",
    ),
    (
        "Properties only supported",
        "maxProperties",
        "maxProperties is supported where all properties are required",
    ),
)
"""Words of the library, the keyword that they are about (None: one that they quote), and what is said instead."""


class SchemaError(Exception):
    """A schema that cannot be enforced, and `place`: the JSON pointer of its part that is the reason."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place


def prepare(schema: Any) -> Any:
    """The schema as grammars are made of it: the same language, without keywords that assert nothing.

    Raises SchemaError for what is no schema, and for what a grammar would not enforce exactly.
    """
    if schema is True:
        schema = {}
    if schema is False:
        raise SchemaError("false accepts nothing", "")
    if not isinstance(schema, dict):
        raise SchemaError(f"a schema is an object or a boolean, got {type(schema).__name__}", "")
    old = str(schema.get("$schema", "")).find
    siblings_count = not any(old(draft) >= 0 for draft in _OLD_DRAFTS)
    choices = Choices(schema, siblings_count=siblings_count)
    prepared = _prepare(schema, "", choices, siblings_count=siblings_count)
    return {**{key: value for key, value in prepared.items() if key != "x-guidance"}, "x-guidance": _OPTIONS}


def explained(reason: str, schema: Any, why_not: Callable[[str], str]) -> SchemaError:
    """What the library said of a schema, by the keyword at fault and its place.

    `why_not` says it of any schema. It is asked about parts of this one, as schemas of their own with the definitions
    that they refer to, down to the smallest that it has an answer for, or to where asking has taken too long.
    """
    place, part = "", schema
    probes, until = 0, time.monotonic() + _PROBES_S
    children = _children(part)
    while (found := next(children, None)) is not None:
        name, child = found
        if not isinstance(child, dict):
            continue
        probes += 1
        if probes > _MAX_PROBES or time.monotonic() > until:
            break
        if answer := why_not(_alone(child, schema)):
            place, part, reason = f"{place}/{name}", child, answer
            children = _children(part)
    reason = " ".join(reason.split())[:_MAX_REASON]
    for words, keyword, message in _REASONS:
        if words in reason and (keyword is None or keyword in part):
            key = keyword or next((key for key in part if f'"{key}"' in reason), None)
            if key is not None:
                return SchemaError(message.format(key=key, value=part.get(key)), f"{place}/{key}")
    for words, keyword, message in _REASONS:  # of a part that this one refers to, or that was put together
        quoted = _QUOTED.search(reason)
        if words in reason and "{value" not in message and (keyword or quoted):
            return SchemaError(message.format(key=keyword or (quoted and quoted[1])), place)
    return SchemaError(reason, place)


def user_place(place: str, schema: Any) -> str:
    """As much of a JSON pointer as the user's own schema has: what is in other words is at the part that it is of."""
    found, at = "", schema
    for name in place.split("/")[1:]:
        key = name.replace("~1", "/").replace("~0", "~")
        if isinstance(at, list) and key.isdecimal() and int(key) < len(at):
            at = at[int(key)]
        elif isinstance(at, dict) and key in at:
            at = at[key]
        else:
            break
        found += f"/{name}"
    return found


def _alone(part: Json, whole: Json) -> str:
    beside: Json = {"$schema": whole["$schema"]} if "$schema" in whole else {}
    beside |= {key: each for key, each in _referred(part, whole).items() if key not in part}
    return json.dumps({**part, **beside, "x-guidance": _OPTIONS}, ensure_ascii=False)


def _referred(part: Json, whole: Json) -> Json:
    """The definitions of the whole that a part needs: all, where it refers to anything otherwise than by its place."""
    definitions = {key: whole[key] for key in ("$defs", "definitions") if isinstance(whole.get(key), dict)}
    needed: dict[str, Json] = {key: {} for key in definitions}
    waiting: list[Any] = [part]
    while waiting:
        at = waiting.pop()
        waiting += at.values() if isinstance(at, dict) else at if isinstance(at, list) else ()
        reference = at.get("$ref") if isinstance(at, dict) else None
        if not isinstance(reference, str):
            continue
        match = _DEFINITION.match(reference)
        if match is None or match[1] not in definitions or "%" in reference:
            return definitions
        key, name = match[1], match[2].replace("~1", "/").replace("~0", "~")
        if name in definitions[key] and name not in needed[key]:
            needed[key][name] = definitions[key][name]
            waiting.append(definitions[key][name])
    return {key: each for key, each in needed.items() if each}


def _children(schema: Json) -> Iterator[tuple[str, Any]]:
    """The parts of a schema that are schemas, by the rest of their JSON pointers."""
    for key, value in schema.items():
        if key in _ONE or (key == "items" and not isinstance(value, list)):
            yield key, value
        elif (key in _LISTS or key == "items") and isinstance(value, list):
            yield from ((f"{key}/{i}", each) for i, each in enumerate(value))
        elif (key in _MAPS or key == "dependencies") and isinstance(value, dict):
            yield from ((f"{key}/{_escaped(name)}", each) for name, each in value.items())


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _prepare(schema: Json, place: str, choices: Choices, *, siblings_count: bool) -> Json:
    if place.count("/") > _MAX_DEPTH:
        raise SchemaError("is nested too deeply", place[:200] + "...")
    if "$ref" in schema and not siblings_count:
        schema = {key: value for key, value in schema.items() if key in _BEFORE_REF}
    out: Json = {}
    for key, value in schema.items():
        if not _asserts_nothing(key, value, schema):
            out[key] = _prepared_value(key, value, place, choices, siblings_count=siblings_count)
    _check(out, place)

    def prepared(part: Any) -> Any:
        return (
            _prepare(part, place, choices, siblings_count=siblings_count) if isinstance(part, dict) else part
        )

    return rewritten(choices.rewritten(out, schema, prepared))


def _prepared_value(key: str, value: Any, place: str, choices: Choices, *, siblings_count: bool) -> Any:
    def part(child: Any, name: str) -> Any:
        if not isinstance(child, dict):
            return child
        if child.get("not") in (True, {}) and (siblings_count or "$ref" not in child):
            return False
        return _prepare(child, f"{place}/{name}", choices, siblings_count=siblings_count)

    if key in _ONE or (key == "items" and not isinstance(value, list)):
        return part(value, key)
    if (key in _LISTS or key == "items") and isinstance(value, list):
        return [part(child, f"{key}/{i}") for i, child in enumerate(value)]
    if (key in _MAPS or key == "dependencies") and isinstance(value, dict):
        return {name: part(child, f"{key}/{_escaped(name)}") for name, child in value.items()}
    return value


def _asserts_nothing(key: str, value: Any, schema: Json) -> bool:
    """Whether a keyword accepts everything where it stands."""
    if key in _ANNOTATIONS:
        return True
    match key:
        case "format":
            return value not in _FORMATS if isinstance(value, str) else False
        case "uniqueItems":
            most = schema.get("maxItems")
            return value is False or (value is True and most in (0, 1) and not isinstance(most, bool))
        case "unevaluatedProperties" | "unevaluatedItems" | "propertyNames":
            return value is True or value == {}
        case "if":
            return not any(key.startswith(("then", "else", "unevaluated")) for key in schema)
        case "then" | "else":
            return "if" not in schema
        case "minContains" | "maxContains":
            return "contains" not in schema
        case "not":
            return value is False
        case "dependencies" | "dependentRequired" | "dependentSchemas":
            return isinstance(value, dict) and all(each in ([], True, {}) for each in value.values())
    return False


def _check(schema: Json, place: str) -> None:
    """Raises for what the library takes and does not enforce."""
    for key in ("const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        if key in schema and not _is_exact(schema[key]):
            raise SchemaError(f"{key} has an integer beyond 2^53", f"{place}/{key}")
    for key, patterns in (
        ("pattern", [schema.get("pattern")]),
        ("patternProperties", schema.get("patternProperties")),
    ):
        longest = max((len(each) for each in patterns or () if isinstance(each, str)), default=0)
        if longest > MAX_PATTERN:
            raise SchemaError(
                f"{key} has {longest} characters; at most {MAX_PATTERN} are accepted", f"{place}/{key}"
            )
    if _is_too_complex(schema):
        raise SchemaError(
            "a group that repeats inside and is itself repeated, together with maxLength, is too complex",
            f"{place}/pattern",
        )
    least = schema.get("minProperties", 0)
    required = schema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > max(1, len(set(map(str, required)))):
        # Names that no keyword lists may come twice, and would count as two.
        raise SchemaError(
            f"minProperties is {least}; more than what `required` names, and more than 1, is not supported",
            f"{place}/minProperties",
        )


def _is_too_complex(schema: Json) -> bool:
    """Whether so many states would be needed that a text would be given up in the middle."""
    pattern, longest = schema.get("pattern"), schema.get("maxLength")
    if not isinstance(pattern, str) or not isinstance(longest, int):
        return False
    times = max((int(most) for most in _REPEATED_GROUP.findall(pattern)), default=0)
    return times * longest > _MAX_PRODUCT


def _is_exact(value: Any) -> bool:
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return True
    if isinstance(value, int):
        return abs(value) <= _EXACT_INTEGERS
    return all(map(_is_exact, value.values() if isinstance(value, dict) else value))
