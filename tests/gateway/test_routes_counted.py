"""What calls of a route count for, whichever of its models answers, and how much of them conditions read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airi.gateway.gate import Government

from .test_routes import routed
from .upstream import GOOD, ask, content


class Held:
    """Tells what a call counted for."""

    headers = ()
    is_metered = False
    used = None
    reservation = SimpleNamespace(
        scopes=(), demand=SimpleNamespace(requests=0, input_tokens=0, output_tokens=0, cost_micro=0)
    )

    def __init__(self, model: str, told: list[tuple[str, int]]) -> None:
        self.model, self._told = model, told

    async def settle(self, requests: int, *_: int) -> None:
        if requests:
            self._told.append((self.model, requests))

    def use_device(self, *_: Any, **__: Any) -> None:
        pass


class Counting:
    """Has room for everything, and notes what is counted as a request."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    async def reserve(self, tenant: str, model: str, kind: str, most: tuple[int, int, int], end: Any) -> Held:
        return Held(model, self.told if most[0] else [])


@pytest.mark.parametrize(("tokens", "counted"), [(8, [("a", 1)]), (21, [("b", 1)])])
def test_a_call_is_one_request_whatever_the_first_model_would_cost(
    tokens: int, counted: list[tuple[str, int]]
) -> None:
    made: list[Government] = []
    limiter: Any = Counting()
    with routed(GOOD, holder=made, max_cost_per_request=20) as (http, _, _):
        made[0].limiter = limiter
        assert content(ask(http, model="auto", max_tokens=tokens))
    assert limiter.told == counted


def test_a_call_that_no_model_answers_for_its_cost_is_a_request() -> None:
    made: list[Government] = []
    limiter: Any = Counting()
    with routed(GOOD, holder=made, max_cost_per_request=0.000001, fallback=["b"]) as (http, _, _):
        made[0].limiter = limiter
        assert ask(http, model="auto", max_tokens=21).status_code == 400
    assert limiter.told == [("b", 1)]


def test_what_is_nested_deep_is_refused_as_it_is_without_a_route() -> None:
    deep: Any = "a"
    for _ in range(700):
        deep = [deep]
    with routed(GOOD) as (http, _, _):
        for model in ("a", "auto"):
            answer = ask(http, model=model, messages=[{"role": "user", "content": deep}])
            assert answer.status_code == 400, answer.text
