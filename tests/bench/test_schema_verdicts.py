"""Verdicts over schemas with documents, and refusals that name what is at fault."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benches.schema_verdicts import Case, Verdicts, judge, names_keyword

llguidance = pytest.importorskip("llguidance")


def judged(schema: Any, *tests: tuple[bool, Any]) -> Verdicts:
    verdicts = Verdicts()
    judge(Case("c", schema, list(tests)), SimpleNamespace(tokenizer=llguidance.LLTokenizer("byte")), verdicts)
    return verdicts


def test_documents_are_judged_in_any_order_of_their_keys() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}
    verdicts = judged(schema, (True, {"b": [], "a": 1}), (False, {"b": 1}), (False, {"a": 2}))
    assert (verdicts.valid_accepted, verdicts.invalid_rejected) == (1, 1)
    assert verdicts.wrong == [("c", False, '{"a": 2}')]


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"pattern": "a"}}, True),
        ({"type": "array", "uniqueItems": True}, True),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, True),
        ({"type": "string", "format": "regex"}, True),
        ({"enum": ["x" * 530_000]}, False),
    ],
)
def test_refusals_are_kept_and_judged_by_whether_they_name_a_keyword(schema: Any, *, named: bool) -> None:
    verdicts = judged(schema, (True, "x"))
    assert (verdicts.schemas, verdicts.taken, verdicts.valid) == (1, 0, 0)
    ((_, refusal),) = verdicts.refusals
    assert names_keyword(refusal) is named, refusal


@pytest.mark.parametrize(
    "reason",
    ["Schema does not exist", "Unable to determine if regex is empty", "required property is missing"],
)
def test_words_of_english_are_no_keywords_unless_they_begin_a_reason(reason: str) -> None:
    assert names_keyword(f"structured: cannot be enforced exactly: at /a: {reason}") is reason.startswith(
        "required"
    )
