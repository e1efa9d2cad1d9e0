"""Conditions in CEL: mistakes are known before they hold, and what cannot be told is neither true nor false."""

from __future__ import annotations

from typing import Any

import pytest

from airi.errors import ConfigError
from airi.policy.conditions import Condition, ConditionError

EXAMPLE: dict[str, Any] = {
    "request": {"stream": False, "tools": [], "metadata": {}},
    "caller": {"tenant": ""},
}
FACTS: dict[str, Any] = {
    "request": {"stream": True, "tools": ["look"], "metadata": {"topic": "billing", "n": 3}},
    "caller": {"tenant": "acme"},
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("request.stream", True),
        ("!request.stream || caller.tenant == 'other'", False),
        ("request.metadata.topic == 'billing' && size(request.tools) > 0", True),
        ("has(request.metadata.region)", False),
        ("'look' in request.tools", True),
        ("request.tools.exists(name, name.startsWith('lo'))", True),
        ("request.metadata.n > 2", True),
    ],
)
def test_they_hold_or_not(text: str, holds: bool) -> None:  # noqa: FBT001
    assert Condition(text, EXAMPLE).holds(FACTS) is holds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("request.stream ==", "line 1, column 18: mismatched input"),
        ("request.stream\n  && )", "line 2, column 6: mismatched input"),
        ("", "line 1, column 1: mismatched input"),
        ("(" * 5000, ""),
        ("reqest.stream", "'reqest' is neither a function nor one of: request, caller"),
        ("length(request.tools) > 1", "'length' is neither a function nor one of"),
    ],
)
def test_a_mistake_is_known_at_once_and_where_it_is(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Condition(text, EXAMPLE)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["request.metadata.region == 'eu'", "request.metadata.topic > 3", "request.metadata.topic", "1"]
)
def test_what_cannot_be_told_is_an_error_that_quotes_nothing(text: str) -> None:
    with pytest.raises(ConditionError) as caught:
        Condition(text, EXAMPLE).holds(FACTS)
    assert "billing" not in str(caught.value)
