"""`routes`: names that are called as models are, and stand for one of several by rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from airi.config.values import Name, Part, PositiveNumber, Whole, accepts
from airi.errors import ConfigError, ConfigFileError

if TYPE_CHECKING:
    from airi.config.load import ConfigFile
    from airi.config.mistakes import Mistake

__all__ = ["MOST_LABELS", "Classifier", "Route", "Rule", "check_routes", "route_mistakes"]

MOST_LABELS = 64

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


Label = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9 _/-]{0,62}[A-Za-z0-9])?$"),
    accepts("a label of letters, digits, spaces and _ / -, at most 64, with a letter or digit at both ends"),
]


class Classifier(Part):
    """A model that is shown what a user asks for, and says which label fits."""

    foreign: ClassVar[dict[str, str]] = {
        "prompt": "question",
        "timeout": "timeout_s",
        "max_tokens": "max_text_tokens",
        "categories": "labels",
    }

    model: Name
    """The model that is asked; small, as every call waits for it of which no rule says more."""
    labels: Mapping[Label, Name]
    """What it may say, and the model that each is for."""
    question: Annotated[str, Field(min_length=1, max_length=4000)] | None = None
    """What it is asked about the text: what the labels mean. Left out: which of them fits."""
    timeout_s: PositiveNumber = 5.0
    """Seconds, after which the route's default is taken."""
    max_text_tokens: Annotated[int, Whole(16, 32768)] = 512
    """Of the last text of the user, what it is shown: the beginning and the end of a longer one."""


class Route(Part):
    """A name that stands for one of several models."""

    foreign: ClassVar[dict[str, str]] = {"fallbacks": "fallback", "max_cost": "max_cost_per_request"}

    name: Name
    """What requests call it."""
    rules: tuple[Rule, ...] = Field(default=(), strict=False)
    """The first that holds says which model is used."""
    classifier: Classifier | None = None
    """A model that is asked which one is meant where no rule holds."""
    default: Name
    """The model where none holds, and no label is told."""
    affinity: Literal["session"] | None = None
    """session: calls of one x-airi-session keep the model that answered the first, while it serves and may be used."""
    fallback: tuple[Name, ...] = Field(default=(), strict=False)
    """Models that are asked in turn where one cannot serve and nothing of an answer has gone out."""
    max_cost_per_request: PositiveNumber | None = None
    """What the most tokens of a request may cost by the price of its model; else the next fallback is asked."""

    @property
    def models(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The models that it may use, by their keys."""
        for k, rule in enumerate(self.rules):
            yield ("rules", k, "use"), rule.use
        if self.classifier is not None:
            for label, name in self.classifier.labels.items():
                yield ("classifier", "labels", label), name
        yield ("default",), self.default
        for k, name in enumerate(self.fallback):
            yield ("fallback", k), name


def check_routes(file: ConfigFile) -> None:
    """Raises ConfigFileError with a line for each condition that is none."""
    mistakes = route_mistakes(file)
    if mistakes:
        raise ConfigFileError(mistakes)


def route_mistakes(file: ConfigFile) -> list[Mistake]:
    """Conditions that cannot be read, each with its line and column, and classifiers that no chat can be put to."""
    from airi.policy.conditions import Condition

    mistakes = list(_untemplated(file))
    for i, route in enumerate(file.config.routes):
        for k, rule in enumerate(route.rules):
            try:
                Condition(rule.when, EXAMPLE)
            except ConfigError as error:
                accepted = f"a condition in CEL ({error})"
                mistakes.append(file.mistake(("routes", i, "rules", k, "when"), accepted))
    return mistakes


def _untemplated(file: ConfigFile) -> Iterator[Mistake]:
    """Classifiers on this machine without a chat template: a text alone would be continued, not classified."""
    from airi._sources import is_remote
    from airi.errors import AiriError
    from airi.text import has_chat_template

    models = {name: model for model in file.config.models for name in (model.name, *model.aliases)}
    for i, route in enumerate(file.config.routes):
        model = None if route.classifier is None else models.get(route.classifier.model)
        if model is None or model.upstream is not None or model.chat_template is not None:
            continue
        for source in [
            each for each in (model.source, *(v.source for v in model.versions)) if each is not None
        ]:
            folder = file.resolve(source)
            try:
                lacks = not is_remote(source) and folder.is_dir() and not has_chat_template(folder)
            except AiriError:
                continue  # told of the model itself
            if lacks:
                yield file.mistake(("routes", i, "classifier", "model"), "a model with a chat template")
                break
