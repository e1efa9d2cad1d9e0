"""Routes in a config: names that there are, conditions that can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airi.config import ConfigFile, parse
from airi.config.check import check
from airi.config.reload import diff
from airi.config.routes import route_mistakes
from airi.errors import ConfigFileError

FAR = {"base_url": "http://gpu/v1", "model": "m", "max_model_len": 512}
ROUTE = {"name": "auto", "default": "own", "rules": [{"when": "request.stream", "use": "near"}]}


CLASSIFIER: dict[str, Any] = {"model": "own", "labels": {"code": "own", "chat": "near"}}


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
        ({"affinity": "user"}, "routes[0].affinity is 'user'; accepted: session"),
        (
            {"classifier": CLASSIFIER | {"model": "gone"}},
            "classifier.model is 'gone'; accepted: one of: own, near",
        ),
        (
            {"classifier": CLASSIFIER | {"model": "auto"}},
            "classifier.model is 'auto'; accepted: one of: own, near",
        ),
        ({"classifier": {"model": "own"}}, "routes[0].classifier.labels is missing; accepted: a mapping"),
        (
            {"classifier": CLASSIFIER | {"labels": {"code": "own"}}},
            "classifier.labels is 1; accepted: 2 to 64 labels, each with its model",
        ),
        (
            {"classifier": CLASSIFIER | {"labels": {"code": "own", "chat": "auto"}}},
            "classifier.labels.chat is 'auto'; accepted: one of: own, near, free",
        ),
        (
            {"classifier": CLASSIFIER | {"labels": {"code": "own", "Code": "free"}}},
            "accepted: labels that differ in more than upper and lower case",
        ),
        (
            {"classifier": CLASSIFIER | {"labels": {"code,": "own", "chat": "own"}}},
            "accepted: a label of letters, digits, spaces",
        ),
        (
            {"classifier": CLASSIFIER | {"max_text_tokens": 1}},
            "max_text_tokens is 1; accepted: a whole number from 16 to 32768",
        ),
        (
            {"classifier": CLASSIFIER | {"timeout_s": 0}},
            "classifier.timeout_s is 0; accepted: a positive number",
        ),
        ({"classifier": CLASSIFIER | {"prompt": "?"}}, "question"),
        (
            {
                "classifier": CLASSIFIER | {"labels": {"code": "own", "chat": "free"}},
                "max_cost_per_request": 1,
            },
            "accepted: a ceiling where all its models have a price; free has none",
        ),
    ],
)
def test_each_mistake_is_a_line(route: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        check(config(**route))
    assert said in "\n".join(caught.value.lines)


def test_a_classifier_has_a_chat_template(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    models = [{"name": "base", "source": str(tmp_path)}, {"name": "far", "upstream": FAR}]
    labels = {"code": "base", "chat": "far"}
    route = {"name": "auto", "default": "base", "classifier": {"model": "base", "labels": labels}}

    def lines() -> list[str]:
        file = parse(json.dumps({"version": 1, "models": models, "routes": [route]}))
        return [str(mistake) for mistake in route_mistakes(file)]

    assert "classifier.model is 'base'; accepted: a model with a chat template" in lines()[0]
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert lines() == []
    route["classifier"] = {"model": "far", "labels": labels}
    assert lines() == []


def test_they_change_while_they_are_served() -> None:
    found = diff(config(), config(default="free"))
    assert (found.changes, found.refusals) == (("routes.auto.default",), ())
