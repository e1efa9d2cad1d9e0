"""Schemas in other words: what is said of them, against a validator."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi.engine.constraints.disjoint import Disjointness
from airi.engine.constraints.negation import Negation, any_of
from airi.engine.constraints.schemas import prepare
from benches.schema_verdicts import Writer

DRAFTS = "http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"
DEFINITIONS = {"a": {"type": "object", "required": ["k"]}, "b": {"enum": [1, "a"]}}

# What is rewritten, with documents that must be judged alike.
DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
DATES = ["2024-02-29", "2023-02-29", "1900-02-29", "2000-02-29", "2023-04-31", "2023-4-01"]
TIMES = ["2024-02-29T23:59:60Z", "2024-01-01T00:00:60Z", "2024-01-01t10:00:00.5+02:00"]
B_IS_NULL = {"properties": {"b": {"type": "null"}}}
NAMED = {"x-guidance": {"lenient": True}, "properties": {"x-guidance": {"type": "null"}}}
SAME: list[tuple[Any, list[Any]]] = [
    ({"not": {"type": "string"}}, ["a", 1, 1.5, None, [], {}, True]),
    ({"not": {"type": ["number", "null"]}}, ["a", 1, 1.5, None, [], {}, True]),
    ({"not": {"not": {"type": "integer"}}}, [1, "a"]),
    ({"not": {"required": ["a", "b"]}}, [{"a": 1}, {"a": 1, "b": 1}, {}, 5]),
    ({"not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}}, [{"a": 1}, {"b": 1}, {}, {"c": 1}, 5]),
    ({"not": {"allOf": [{"required": ["a"]}, {"type": "object"}]}}, [{"a": 1}, {"b": 1}, 5]),
    ({"type": "object", "properties": {"a": {"not": {}}}}, [{"a": 1}, {"b": 1}, {}]),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {}, 5]),
    (
        {"type": "object", "oneOf": [{"required": ["a", "c"]}, {"required": ["b"]}, {"required": ["c"]}]},
        [{"a": 1, "c": 1}, {"a": 1}, {"b": 1}, {"c": 1}, {"b": 1, "c": 1}, {"b": 1, "a": 1}],
    ),
    (
        {
            "$defs": {"s": {"type": "string"}, "l": {"type": "array", "items": {"$ref": "#/$defs/s"}}},
            "oneOf": [{"$ref": "#/$defs/s"}, {"$ref": "#/$defs/l"}, {"type": "null"}],
        },
        ["a", ["a"], [1], None, 1],
    ),
    (
        {
            "$defs": {
                "a": {
                    "type": "object",
                    "properties": {"k": {"const": "a"}, "n": {"type": "integer"}},
                    "required": ["k"],
                }
            },
            "oneOf": [{"$ref": "#/$defs/a"}, {"properties": {"k": {"enum": ["b", 1]}}, "type": "object"}],
        },
        [{"k": "a", "n": 1}, {"k": "a", "n": "x"}, {"k": "b", "n": "x"}, {"k": 1}, {"k": 2}],
    ),
    (
        {"oneOf": [{"type": "integer", "minimum": 5}, {"type": "number", "maximum": 4.5}]},
        [5, 4, 4.5, 5.5, "a"],
    ),
    ({"dependentRequired": {"a": ["b"]}}, [{"a": 1}, {"a": 1, "b": 1}, {"b": 1}, {}, 5]),
    ({"dependentSchemas": {"a": B_IS_NULL}}, [{"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": None}, {"b": 1}]),
    (
        {**DRAFT_7, "dependencies": {"a": ["b"], "c": {"minProperties": 1}}},
        [{"a": 1}, {"a": 1, "b": 2}, {"c": 1}],
    ),
    (
        {"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": {"type": "integer"}},
        [{"x": 1}, {"y": 1}, {"x": "a"}, {}],
    ),
    ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, [{"a": 1}, {"b": 1}]),
    ({"type": "string", "format": "date"}, DATES),
    ({"type": "string", "format": "date-time"}, TIMES),
    ({"type": "string", "format": "color"}, ["anything"]),
    ({"type": "string", "pattern": "^\\S+$"}, ["a", "a b", "a\u00a0b"]),
    ({"type": "string", "pattern": "^[\\s]$"}, [" ", "a"]),
    (
        {"type": "array", "uniqueItems": False, "items": {"type": "integer", "deprecated": True}},
        [[1, 1], ["a"]],
    ),
    ({"type": "array", "maxItems": 1, "uniqueItems": True}, [[], [1], [1, 2]]),
    (
        {**DRAFT_7, "definitions": {"s": {"type": "string"}}, "$ref": "#/definitions/s", "maxLength": 1},
        ["abc", 1],
    ),
    ({"not": {"enum": ["ab", "a", ""]}}, ["ab", "a", "", "b", "abc", "aa", "\n", 1, None]),
    ({"type": "string", "not": {"const": "a.c"}}, ["a.c", "abc", "", "a.cc", "a.d"]),
    ({"enum": [1, "a", [2], None], "not": {"enum": [[2.0], None]}}, [1, "a", [2], None, 3]),
    ({"type": "number", "not": {"enum": [1, -2.5]}}, [1, 1.0, -2.5, 1.5, 0, -3]),
    ({"type": ["integer", "string"], "not": {"type": "integer"}}, [1, "a"]),
    ({"not": {"minLength": 2}}, ["a", "ab", 1]),
    (
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}},
            "not": {"properties": {"k": {"const": "a"}}},
        },
        [{"k": "a"}, {"k": "b"}, {}, {"c": 1}],
    ),
    (
        {
            "properties": {"k": {"enum": ["a", "b"]}, "n": {}},
            "if": {"properties": {"k": {"const": "a"}}},
            "then": {"required": ["n"]},
            "else": {"properties": {"n": {"type": "null"}}},
        },
        [{"k": "a"}, {"k": "a", "n": 1}, {"k": "b", "n": 1}, {"k": "b", "n": None}, {}, {"n": 1}, 5],
    ),
    (
        {
            "oneOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False},
                {"type": "object", "properties": {"b": {"type": "integer"}}, "additionalProperties": False},
            ]
        },
        [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {"c": 1}, {"a": "x"}],
    ),
    ({"type": "number", "oneOf": [{"maximum": 2}, {"maximum": 5}]}, [1, 2, 3, 5, 6]),
    ({"oneOf": [{"type": "string"}, {"enum": ["x", 1]}]}, ["x", "y", 1, 2]),
    ({"type": "object", **NAMED}, [{"x-guidance": None}, {"x-guidance": 1}]),
]


@pytest.mark.parametrize(("schema", "documents"), SAME)
def test_schemas_in_other_words_mean_the_same(schema: Any, documents: list[Any]) -> None:
    from llguidance import LLMatcher, LLTokenizer

    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(prepare(schema)))
    verdicts = set()
    for document in documents:
        accepted = Writer(SimpleNamespace(tokenizer=LLTokenizer("byte")), grammar).accepts(document)
        assert accepted == validator.is_valid(document), document
        verdicts.add(accepted)
    assert verdicts == {True, False} or len(documents) == 1


_JUDGED: list[Any] = [
    None, True, 0, 1, 1.5, 3, "", "a", "abc", [], [1], ["a", "b"], {}, {"k": 1}, {"k": "a"}, {"k": "a", "n": 1},
    {"n": "a"},
]  # fmt: skip
_parts = st.fixed_dictionaries({}, optional={
    "type": st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object", ["null", "object"]]),
    "enum": st.lists(st.sampled_from([None, True, 1, 1.0, "a", {"k": 1}]), min_size=1, max_size=3),
    "const": st.sampled_from([0, False, "a", "", [1]]),
    "required": st.lists(st.sampled_from("kn"), max_size=2, unique=True),
    "minimum": st.integers(0, 3), "maximum": st.integers(0, 3), "minLength": st.integers(0, 3),
    "maxLength": st.integers(0, 2), "minItems": st.integers(0, 2), "maxItems": st.integers(0, 1),
    "additionalProperties": st.booleans(), "$ref": st.sampled_from(["#/$defs/a", "#/$defs/b"]),
})  # fmt: skip
_schemas = st.recursive(
    _parts,
    lambda inner: st.tuples(_parts, st.fixed_dictionaries({}, optional={
        "properties": st.dictionaries(st.sampled_from("kn"), inner, max_size=2),
        "patternProperties": st.fixed_dictionaries({"^k": inner}),
        "allOf": st.lists(inner, min_size=1, max_size=2), "anyOf": st.lists(inner, min_size=1, max_size=2),
    })).map(lambda two: {**two[0], **two[1]}),
    max_leaves=4,
)  # fmt: skip


_negatable = st.recursive(
    st.one_of(_schemas, st.booleans()),
    lambda inner: st.one_of(
        st.fixed_dictionaries({}, optional={
            "not": inner, "items": st.just({}), "minProperties": st.integers(0, 1),
            "exclusiveMinimum": st.integers(0, 2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "properties": st.dictionaries(st.sampled_from("kn"), inner),
            "required": st.lists(st.sampled_from("kn"), max_size=2, unique=True),
        }),
        st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner}),
    ),
    max_leaves=3,
)  # fmt: skip


@given(_schemas, _negatable, st.booleans())
def test_what_is_said_not_to_fit_is_what_does_not(within: Any, schema: Any, old: bool) -> None:  # noqa: FBT001
    root = {"$schema": DRAFTS[not old], "$defs": DEFINITIONS}
    proof = Disjointness(root, siblings_count=not old)
    found = Negation(proof, siblings_count=not old).of(schema, proof.facts(within))
    if found is not None:
        around, inner, negated = (
            jsonschema_rs.validator_for({**root, "allOf": [each]}) for each in (within, schema, any_of(found))
        )
        for value in _JUDGED:
            if around.is_valid(value):
                assert negated.is_valid(value) != inner.is_valid(value), (value, found)


@given(_schemas, _schemas, st.booleans())
def test_no_value_fits_two_schemas_that_are_shown_to_be_disjoint(one: Any, other: Any, old: bool) -> None:  # noqa: FBT001
    root = {"$schema": DRAFTS[not old], "$defs": DEFINITIONS}
    if Disjointness(root, siblings_count=not old).disjoint(one, other):
        both = jsonschema_rs.validator_for({**root, "allOf": [one, other]})
        assert not [value for value in _JUDGED if both.is_valid(value)]
