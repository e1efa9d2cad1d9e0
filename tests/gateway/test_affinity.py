"""A session keeps the model that answered it first, while that serves and its caller may use it."""

from __future__ import annotations

from typing import Any

import httpx

from airi.gateway.gate import Government

from .test_routes import OTHER, routed
from .upstream import GOOD, status

LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 101}]}


def say(http: httpx.Client, session: str | None = "s1", **changes: Any) -> str:
    """The model that answers."""
    headers = {} if session is None else {"x-airi-session": session}
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8} | changes
    response = http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.headers["x-airi-model"]


def test_a_conversation_that_grows_stays_where_it_began() -> None:
    with routed(GOOD, affinity="session") as (http, _, _):
        assert [say(http), say(http, **LONG), say(http, stream=True, **LONG)] == ["a", "a", "a"]
        assert [say(http, "s2", **LONG), say(http, "s2")] == ["b", "b"]
        assert [say(http, None), say(http, None, **LONG)] == ["a", "b"]
    with routed(GOOD) as (http, _, _):
        assert [say(http), say(http, **LONG)] == ["a", "b"]


def test_where_its_model_cannot_serve_it_goes_on_with_what_answers() -> None:
    with routed(status(500), affinity="session") as (http, first, _):
        assert [say(http), say(http)] == ["b", "b"]
        assert len(first.asked) == 1
    flaky = [GOOD, status(500), GOOD]
    with routed(flaky, affinity="session") as (http, first, _):
        assert [say(http), say(http), say(http)] == ["a", "b", "b"]
        assert len(first.asked) == 2


def test_a_model_that_its_caller_may_not_use_for_this_is_not_kept() -> None:
    few = 'permit (principal, action, resource); forbid (principal, action == Action::"chat", resource == Model::"a")'
    policies = few + " when { context.max_tokens > 50 };"
    with routed(GOOD, policies=policies, affinity="session") as (http, _, _):
        assert [say(http), say(http, max_tokens=51, **LONG), say(http)] == ["a", "b", "a"]


def test_a_model_that_the_route_has_no_more_is_not_kept() -> None:
    holder: list[Government] = []
    with routed(GOOD, affinity="session", holder=holder) as (http, _, _):
        assert say(http) == "a"
        table = holder[0].routes
        assert table is not None
        (route,) = table
        object.__setattr__(route, "default", "b")
        object.__setattr__(route, "rules", ())
        assert say(http) == "b"


def test_what_may_cost_too_much_is_asked_of_the_next() -> None:
    with routed(GOOD, OTHER, affinity="session", max_cost_per_request=20) as (http, _, _):
        assert [say(http, max_tokens=20), say(http, max_tokens=21)] == ["a", "b"]


def test_a_session_without_a_name_is_refused() -> None:
    with routed(GOOD, affinity="session") as (http, first, _):
        body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}
        response = http.post("/v1/chat/completions", json=body, headers={"x-airi-session": "s" * 513})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_session")
        assert first.asked == []
