"""Routes: which model a request is for, and which is asked where that cannot serve."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from airi.config.limits import cost_micro
from airi.config.routes import EXAMPLE
from airi.errors import AuditUnavailableError, LedgerUnavailableError
from airi.gateway.classifying import Classified, Classifier
from airi.gateway.errors import ApiError, is_unavailable
from airi.gateway.openai.schemas_chat import ChatCompletionRequest
from airi.gateway.openai.schemas_common import SamplingFields
from airi.gateway.openai.schemas_pooling import PoolingFields
from airi.gateway.seldom import Seldom
from airi.policy.conditions import Condition, ConditionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airi.config import ConfigFile
    from airi.config.models import Price
    from airi.config.routes import Route
    from airi.gateway.http import CallRecord
    from airi.gateway.releases import Draw

__all__ = ["Chosen", "RouteTable", "ServedRoute", "TooCostlyError", "facts_of", "may_fall_back"]

log = logging.getLogger("airi.gateway")

_MICRO = 10**6


class TooCostlyError(ApiError):
    """A 400 for a request whose most tokens cost more than its route lets it."""

    def __init__(self, route: str, model: str, cost: int, most: int, *, field: str) -> None:
        message = (
            f"{field}: the request may cost {cost / _MICRO:g} with {model}; "
            f"max_cost_per_request of {route} is {most / _MICRO:g}"
        )
        super().__init__(400, message, param=field, code="too_costly")


class Chosen(NamedTuple):
    """What a route gave a request, and why."""

    models: list[str]
    """The model, and those that are asked in turn where it cannot serve."""
    rule: int | None
    """The rule that holds, by its place; None: none does."""
    failed: list[tuple[int, str]]
    """Rules before it that could not be evaluated, each with the reason."""
    kept: str | None = None
    """The model that the call's session has, which is asked first."""
    classified: Classified | None = None
    """What the classifier came to, where it was asked."""
    draw: Draw | None = None
    """The releases that it was asked in, which the call keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRoute:
    """One route as calls meet it."""

    name: str
    rules: tuple[tuple[Condition, str], ...]
    classifier: Classifier | None
    """What is asked where none holds."""
    default: str
    fallback: tuple[str, ...]
    keeps_sessions: bool
    """Whether calls of one session stay with one model."""
    most_micro: int | None
    """What a request may cost, in millionths of the currency."""
    prices: Mapping[str, Price | None]
    """By model."""
    log: Seldom = field(default_factory=partial(Seldom, log), compare=False, repr=False)

    def choose(self, facts: Mapping[str, Any]) -> Chosen:
        """The models for a request."""
        failed: list[tuple[int, str]] = []
        rule = next((i for i in range(len(self.rules)) if self._holds(i, facts, failed)), None)
        first = self.default if rule is None else self.rules[rule][1]
        return Chosen(self.in_turn(first), rule, failed)

    @property
    def models(self) -> set[str]:
        """All that it may use."""
        labelled = () if self.classifier is None else self.classifier.labels.values()
        return {self.default, *self.fallback, *labelled, *(use for _, use in self.rules)}

    def in_turn(self, *first: str) -> list[str]:
        """These models, and those that are asked where they cannot serve."""
        return list(dict.fromkeys((*first, *self.fallback)))

    def _holds(self, index: int, facts: Mapping[str, Any], failed: list[tuple[int, str]]) -> bool:
        try:
            return self.rules[index][0].holds(facts)
        except ConditionError as error:
            self.log.warn(index, "rules[%d] of route %s counts as false: %s", index, self.name, error)
            failed.append((index, str(error)))
            return False

    def check_cost(self, model: str, most: tuple[int, int]) -> None:
        """Raises TooCostlyError where so many tokens of prompts and answers may cost too much."""
        if self.most_micro is None:
            return
        cost = cost_micro(self.prices.get(model), input_tokens=most[0], output_tokens=most[1])
        if cost > self.most_micro:
            field = "max_tokens" if most[1] else "input"
            raise TooCostlyError(self.name, model, cost, self.most_micro, field=field)


class RouteTable:
    """The routes of a config. Never changed: a reload makes a new one."""

    def __init__(self, file: ConfigFile) -> None:
        """Raises ConfigError for a condition that is none."""
        prices = {model.name: model.price for model in file.config.models}
        self._routes = {route.name: _served(route, prices) for route in file.config.routes}

    def __iter__(self) -> Iterator[ServedRoute]:
        return iter(self._routes.values())

    def find(self, name: str | None) -> ServedRoute | None:
        """The route of this name, where there is one."""
        return self._routes.get(name or "")


def _served(route: Route, prices: Mapping[str, Price | None]) -> ServedRoute:
    most = route.max_cost_per_request
    return ServedRoute(
        name=route.name,
        rules=tuple((Condition(rule.when, EXAMPLE), rule.use) for rule in route.rules),
        classifier=None if route.classifier is None else Classifier.of(route.classifier),
        default=route.default,
        fallback=route.fallback,
        keeps_sessions=route.affinity == "session",
        most_micro=None if most is None else int(most * _MICRO),
        prices=prices,
    )


def facts_of(request: SamplingFields | PoolingFields, record: CallRecord, endpoint: str) -> dict[str, Any]:
    """What conditions may read of a request: nothing of its texts but how long they are."""
    messages: list[dict[str, Any]] = []
    tools: list[str] = []
    response_format = max_tokens = None
    if isinstance(request, ChatCompletionRequest):
        messages = request.messages
        tools = [_name(tool) for tool in request.tools or ()]
        given = request.response_format
        response_format = None if given is None else {"type": type(given).__struct_config__.tag}
        max_tokens = request.max_completion_tokens
    principal = record.principal
    return {
        "request": {
            "endpoint": endpoint,
            "stream": bool(request.stream),
            "n": request.n or 1,
            "max_tokens": request.max_tokens if max_tokens is None else max_tokens,
            "tools": tools,
            "messages": len(messages),
            "characters": _characters(
                [m.get("content") for m in messages] or getattr(request, "prompt", None)
            ),
            "response_format": response_format,
            "metadata": request.metadata or {},
            "priority": request.priority or 0,
        },
        "caller": {
            "tenant": principal.tenant,
            "groups": list(principal.groups),
            "region": principal.region or "",
        },
    }


def _name(tool: dict[str, Any]) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _characters(value: Any, depth: int = 2) -> int:
    """Of all texts in a prompt or in messages' contents, which have parts at most; a token's id counts as one."""
    match value:
        case str():
            return len(value)
        case list():
            return sum(_characters(each, depth - 1) for each in value) if depth else 0
        case dict():
            text = value.get("text")
            return len(text) if isinstance(text, str) else 0
        case _:
            return int(isinstance(value, int))


def may_fall_back(error: Exception) -> bool:
    """Whether another model may be asked: this one could not serve, or would cost too much."""
    if isinstance(error, LedgerUnavailableError | AuditUnavailableError):
        return False
    return isinstance(error, TooCostlyError) or is_unavailable(error)
