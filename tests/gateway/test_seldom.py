"""Lines that calls cause: one a minute of each kind, and how many were left out."""

from __future__ import annotations

import logging

import pytest

from airi.gateway.seldom import Seldom

from .test_classifier import sorted_by
from .upstream import ask, status


def test_a_line_of_a_kind_comes_once_a_minute_with_how_many_were_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at = 1000.0
    seldom = Seldom(logging.getLogger("airi.gateway"), clock=lambda: at)
    said = [seldom.warn("one", "%s is wrong", "it") for _ in range(5)]
    assert said == [True, False, False, False, False]
    assert seldom.warn("two", "so is this")
    at += 61
    assert seldom.warn("one", "%s is wrong", "that")
    at += 61
    assert seldom.warn("one", "%s is wrong", "it")
    assert caplog.messages == [
        "it is wrong",
        "so is this",
        "that is wrong; 4 more like this since the last such line",
        "it is wrong",
    ]


def test_no_client_fills_the_log_by_what_its_calls_have_conditions_and_classifiers_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rules = [{"when": "request.metadata.tier == 'gold'", "use": "b"}]
    with sorted_by(status(500), rules=rules) as (http, *_):
        for _ in range(5):
            assert ask(http, model="auto").status_code == 200
        page = http.get("/metrics").text
    for line in ("rules[0] of route auto counts as false", "the classifier c told no label: failed"):
        assert caplog.text.count(line) == 1
    assert 'airi_route_classifications_total{label="",outcome="failed",route="auto"} 5.0' in page
