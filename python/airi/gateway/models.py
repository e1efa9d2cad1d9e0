"""The models a gateway serves: names and aliases, and of each the versions with their text sides and engines."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from airi.errors import ConfigError
from airi.gateway.errors import unavailable
from airi.gateway.metrics import Metrics, ModelMetrics
from airi.gateway.releases import Draw, ServedLine
from airi.policy.decisions import Action
from airi.text import TextReader, Tokenizer, recommended_sampling, tokenizer_sha256
from airi.transport import EngineHandle, ModelInfo

if TYPE_CHECKING:
    from airi.outputs import Task
    from airi.upstreams.client import UpstreamClient

log = logging.getLogger("airi.gateway")


_USES: dict[Task, tuple[Action, ...]] = {
    "generate": (Action.CHAT, Action.COMPLETION),
    "embed": (Action.EMBED, Action.RERANK),
    "classify": (Action.CLASSIFY, Action.RERANK),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version of a model: what it is, how its text is made, which engine runs it."""

    info: ModelInfo
    tokenizer: Tokenizer
    client: EngineHandle
    metrics: ModelMetrics
    defaults: dict[str, float] = field(default_factory=dict)
    """What the checkpoint recommends for sampling fields that a request leaves out."""
    created: int = 0
    tokenizer_sha256: str = ""
    """Of its tokenizer.json."""
    public_name: str = ""
    """What requests, policies, limits and metrics call it where the engine calls it by its version, too."""
    version: str = "1"
    """Its id among the model's versions; 1 where it has none."""
    upstream: UpstreamClient | None = None
    """Where another server runs it."""
    knows_tokens: bool = True
    """Whether the tokenizer is its own, and not one of which a text has as many tokens at least."""
    reader: TextReader | None = None
    """Of a model that reads texts whole: how they become what it reads."""

    @property
    def name(self) -> str:
        """The primary name; metrics and responses use it."""
        return self.public_name or self.info.name

    @property
    def engine_name(self) -> str:
        """What its engine calls it."""
        return self.info.name

    @property
    def window(self) -> int:
        """Tokens of a prompt and its answer together, or of a text that is read whole."""
        return self.info.max_model_len - (self.info.task != "generate")

    @property
    def uses(self) -> tuple[Action, ...]:
        """What it can be called for."""
        return _USES[self.info.task]


@dataclass(frozen=True, slots=True, kw_only=True)
class Versioned:
    """A model whose versions come and go in its engine, where each is called `MODEL@ID`."""

    name: str
    aliases: tuple[str, ...] = ()
    own_lines: frozenset[str] = frozenset()
    """Aliases that have releases of their own."""
    place: int = 0
    """Among all models."""


class ModelRegistry:
    """Finds a served model by name or alias, in the version that a call is given.

    The first model serves requests that may leave the name out. *Invariant*: no two models share a name or alias.
    """

    def __init__(self, models: Iterable[ServedModel], versioned: Iterable[Versioned] = ()) -> None:
        """`versioned`: models that have versions, by their places; the other ones come in the order given."""
        self._names: dict[str, str] = {}
        self._served: dict[str, dict[str, ServedModel]] = {}
        self._line_of: dict[str, str] = {}
        self._lines: dict[str, ServedLine] = {}
        self._versioned = {model.name: model for model in versioned}
        names: list[tuple[str, tuple[str, ...]]] = []
        for model in models:
            if model.name not in self._versioned:
                names.append((model.name, model.info.aliases))
            self.add(model)
        for each in sorted(self._versioned.values(), key=lambda model: model.place):
            names.insert(each.place, (each.name, each.aliases))
            for name in (each.name, *each.aliases):
                self._line_of[name] = name if name in each.own_lines else each.name
        for name, aliases in names:
            self._name(name, aliases)

    def _name(self, name: str, aliases: Iterable[str]) -> None:
        for each in (name, *aliases):
            if each in self._names:
                raise ConfigError(f"two models are served as {each!r}; give one another name")
            self._names[each] = name

    def add(self, model: ServedModel) -> None:
        """Serves one more version of a model."""
        self._served.setdefault(model.name, {})[model.version] = model

    def remove(self, model: ServedModel) -> None:
        """Gives a version to no more calls."""
        self._served[model.name].pop(model.version, None)

    def serve(self, lines: Iterable[ServedLine]) -> None:
        """From now on calls are given these releases; calls that run keep theirs."""
        self._lines = {line.name: line for line in lines}

    def has_versions(self, model: str) -> bool:
        """Whether versions of a model come and go."""
        return model in self._versioned

    @property
    def has_releases(self) -> bool:
        """Whether calls are given releases."""
        return bool(self._lines)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Each model once, in the version that is stable."""
        found = (self._current(name) for name in dict.fromkeys(self._names.values()))
        return tuple(model for model in found if model is not None)

    @property
    def all_versions(self) -> tuple[ServedModel, ...]:
        """Every version of every model that is served."""
        return tuple(model for versions in self._served.values() for model in versions.values())

    @property
    def named(self) -> dict[str, ServedModel]:
        """The models by all their names and aliases, in the order they were given."""
        found = {name: self._current(model) for name, model in self._names.items()}
        return {name: model for name, model in found.items() if model is not None}

    @property
    def names(self) -> list[str]:
        """All names and aliases, in the order the models were given."""
        return list(self._names)

    @property
    def primary_names(self) -> list[str]:
        """The names of models, without aliases."""
        return list(dict.fromkeys(self._names.values()))

    def find(self, name: str | None, draw: Draw | None = None) -> ServedModel | None:
        """The model of this name or alias, where there is one. None means the first one.

        With a draw in the version that it gives, and without one in the stable version. Raises a 409 for a release that
        is asked for and is not served, and a 503 while a version is not there yet.
        """
        name = next(iter(self._names), "") if name is None else name
        model = self._names.get(name)
        if model is None:
            return None
        line = self._lines.get(self._line_of.get(name, ""))
        if draw is None or line is None:
            found = self._current(model)
            version = ""
        else:
            version = draw.version(model) or draw.take(line, self._is_served).members[model]
            found = self.version(model, version) if self._is_served(model, version) else None
        if found is None:
            shown = f"{model}@{version}" if version else model
            raise unavailable(f"{shown} is not loaded at the moment", code="model_loading")
        return found

    def versions_of(self, name: str) -> dict[str, str | None]:
        """The versions that calls of a name may have now, each with a release that gives it; None: any call has it."""
        model = self._names.get(name, "")
        line = self._lines.get(self._line_of.get(name, ""))
        if line is None:
            current = self._current(model)
            return {} if current is None else {current.version: None}
        found: dict[str, str | None] = {}
        for release in (*line.split.releases, *line.releases):
            members = line.releases.get(release, {})
            if all(self._is_served(*member) for member in members.items()) and model in members:
                found.setdefault(members[model], release)
        return found

    def version(self, model: str, version: str) -> ServedModel | None:
        """A version of a model, where it is served."""
        return self._served.get(model, {}).get(version)

    def _is_served(self, model: str, version: str) -> bool:
        found = self._served.get(model, {}).get(version)
        return found is not None and any(info.name == found.engine_name for info in found.client.models)

    def _current(self, model: str) -> ServedModel | None:
        versions = self._served.get(model, {})
        line = self._lines.get(model)
        if line is not None:
            stable = versions.get(line.releases[line.split.stable].get(model, ""))
            if stable is not None:
                return stable
        return next(iter(versions.values()), None)


def serve_models(
    client: EngineHandle,
    metrics: Metrics,
    *,
    chat_template: str | Path | None = None,
    versioned: Collection[str] = (),
    tasks: Mapping[str, Task] = MappingProxyType({}),
) -> list[ServedModel]:
    """The text side of every model the engine has loaded; raises CheckpointError or ConfigError."""
    return [
        serve_model(info, client, metrics, chat_template=chat_template, versioned=versioned, tasks=tasks)
        for info in client.models
    ]


def serve_model(
    info: ModelInfo,
    client: EngineHandle,
    metrics: Metrics,
    *,
    chat_template: str | Path | None = None,
    versioned: Collection[str] = (),
    tasks: Mapping[str, Task] = MappingProxyType({}),
) -> ServedModel:
    """The text side of a model that an engine has loaded; raises as `serve_models`. Reads files: may run in a thread.

    `versioned`: names of models whose versions the engine calls `MODEL@ID`; `tasks`: what models are said to do.
    """
    name, _, version = info.name.rpartition("@")
    if name not in versioned:
        name, version = info.name, "1"
    pools = info.task != "generate"
    if info.task != tasks.get(name, info.task):
        raise ConfigError(
            f"{info.name} is to {tasks[name]}, and its checkpoint is of a model to {info.task}; "
            "accepted: a checkpoint that fits its task",
            field="task",
        )
    tokenizer = Tokenizer.load(info.path, chat_template=None if pools else chat_template)
    tokenizer.compile_templates()
    if tokenizer.chat_template is None and not pools:
        log.info("%s has no chat template; it answers /v1/completions only", info.name)
    return ServedModel(
        info=info,
        tokenizer=tokenizer,
        client=client,
        metrics=metrics.model(name),
        defaults=recommended_sampling(info.path),
        created=int(time.time()),
        tokenizer_sha256=tokenizer_sha256(info.path),
        public_name=name,
        version=version,
        reader=TextReader(tokenizer) if pools else None,
    )
