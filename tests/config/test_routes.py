"""Routes in a config: names that there are, conditions that can be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airi.config import ConfigFile, parse
from airi.config.check import check
from airi.config.reload import diff
from airi.errors import ConfigFileError

ROUTE = {"name": "auto", "default": "own", "rules": [{"when": "request.stream", "use": "near"}]}


def config(**route: Any) -> ConfigFile:
    models = [
        {"name": "own", "source": "airi-demo", "aliases": ["near"], "price": {"input_per_1m": 1}},
        {"name": "free", "source": "airi-demo"},
    ]
    document = {"version": 1, "models": models, "routes": [ROUTE | route]}
    return parse(json.dumps(document, indent=1), "airi.yaml")


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (
            {"name": "own"},
            "routes[0].name is 'own'; accepted: a name that no other model, alias or route has",
        ),
        ({"name": "near"}, "accepted: a name that no other model, alias or route has"),
        ({"default": "gone"}, "routes[0].default is 'gone'; accepted: one of: own, near, free"),
        ({"fallback": ["own", "auto"]}, "routes[0].fallback[1] is 'auto'; accepted: one of: own, near, free"),
        ({"rules": [{"when": "true", "use": "gone"}]}, "routes[0].rules[0].use is 'gone'; accepted: one of"),
        (
            {"rules": [{"when": "request.stream ==", "use": "own"}]},
            "rules[0].when is 'request.stream =='; accepted: a condition in CEL (line 1, column 18: mismatched",
        ),
        (
            {"rules": [{"when": "stream", "use": "own"}]},
            "'stream' is neither a function nor one of: request, caller",
        ),
        ({"max_cost_per_request": 0}, "max_cost_per_request is 0; accepted: a positive number"),
        (
            {"max_cost_per_request": 1, "fallback": ["free"]},
            "accepted: a ceiling where all its models have a price; free has none",
        ),
        ({"classifier": {"model": "own"}}, "this version of AIRI does not have classifier"),
    ],
)
def test_each_mistake_is_a_line(route: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        check(config(**route))
    assert said in "\n".join(caught.value.lines)


def test_they_change_while_they_are_served() -> None:
    found = diff(config(), config(default="free"))
    assert (found.changes, found.refusals) == (("routes.auto.default",), ())
