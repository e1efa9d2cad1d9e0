"""`routes`: names that are called as models are, and stand for one of several by rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from airi.config.values import Name, Part, PositiveNumber, accepts
from airi.errors import ConfigError, ConfigFileError

if TYPE_CHECKING:
    from airi.config.load import ConfigFile
    from airi.config.mistakes import Mistake

__all__ = ["Route", "Rule", "check_routes", "route_mistakes"]

EXAMPLE = {
    "request": {
        "endpoint": "chat",
        "stream": False,
        "n": 1,
        "max_tokens": None,
        "tools": [],
        "messages": 1,
        "characters": 0,
        "response_format": None,
        "metadata": {},
        "priority": 0,
    },
    "caller": {"tenant": "", "groups": [], "region": ""},
}
"""What conditions may read, with a value of each; `messages` and `characters` are counts."""


class Rule(Part):
    """What some requests are for."""

    when: Annotated[str, Field(min_length=1, max_length=4096), accepts("a condition in CEL")]
    """Condition in CEL over `request` (endpoint, stream, n, max_tokens, tools, messages, characters, response_format,
    metadata, priority) and `caller` (tenant, groups, region). One that cannot be evaluated is false."""
    use: Name
    """The model for them."""


class Route(Part):
    """A name that stands for one of several models."""

    later: ClassVar[tuple[str, ...]] = ("classifier", "affinity")
    foreign: ClassVar[dict[str, str]] = {"fallbacks": "fallback", "max_cost": "max_cost_per_request"}

    name: Name
    """What requests call it."""
    rules: tuple[Rule, ...] = Field(default=(), strict=False)
    """The first that holds says which model is used."""
    default: Name
    """The model where none holds."""
    fallback: tuple[Name, ...] = Field(default=(), strict=False)
    """Models that are asked in turn where one cannot serve and nothing of an answer has gone out."""
    max_cost_per_request: PositiveNumber | None = None
    """What the most tokens of a request may cost by the price of its model; else the next fallback is asked."""

    @property
    def models(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The models that it may use, by their keys."""
        for k, rule in enumerate(self.rules):
            yield ("rules", k, "use"), rule.use
        yield ("default",), self.default
        for k, name in enumerate(self.fallback):
            yield ("fallback", k), name


def check_routes(file: ConfigFile) -> None:
    """Raises ConfigFileError with a line for each condition that is none."""
    mistakes = route_mistakes(file)
    if mistakes:
        raise ConfigFileError(mistakes)


def route_mistakes(file: ConfigFile) -> list[Mistake]:
    """Conditions that cannot be read, each with its line and column."""
    from airi.policy.conditions import Condition

    mistakes = []
    for i, route in enumerate(file.config.routes):
        for k, rule in enumerate(route.rules):
            try:
                Condition(rule.when, EXAMPLE)
            except ConfigError as error:
                accepted = f"a condition in CEL ({error})"
                mistakes.append(file.mistake(("routes", i, "rules", k, "when"), accepted))
    return mistakes
