"""The models a gateway serves: names and aliases, each with its text side and the engine that runs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from airi.errors import ConfigError
from airi.gateway.metrics import Metrics, ModelMetrics
from airi.text import Tokenizer, recommended_sampling, tokenizer_sha256
from airi.transport import EngineClient, ModelInfo

log = logging.getLogger("airi.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model: what it is, how its text is made, which engine runs it."""

    info: ModelInfo
    tokenizer: Tokenizer
    client: EngineClient
    metrics: ModelMetrics
    defaults: dict[str, float] = field(default_factory=dict)
    """What the checkpoint recommends for sampling fields that a request leaves out."""
    created: int = 0
    tokenizer_sha256: str = ""
    """Of its tokenizer.json."""

    @property
    def name(self) -> str:
        """The primary name; metrics and responses use it."""
        return self.info.name

    @property
    def version(self) -> str:
        """What tells its versions apart, for APIs that have them."""
        return "1"


class ModelRegistry:
    """Finds a served model by name or alias. The first model serves requests that may leave the name out.

    *Invariant*: no two models share a name or alias.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._by_name: dict[str, ServedModel] = {}
        self.models = tuple(models)
        for model in self.models:
            for name in (model.info.name, *model.info.aliases):
                if self._by_name.setdefault(name, model) is not model:
                    raise ConfigError(f"two models are served as {name!r}; give one another name")

    @property
    def named(self) -> dict[str, ServedModel]:
        """The models by all their names and aliases, in the order they were given."""
        return dict(self._by_name)

    @property
    def names(self) -> list[str]:
        """All names and aliases, in the order the models were given."""
        return list(self._by_name)

    def find(self, name: str | None) -> ServedModel | None:
        """The model of this name or alias, where there is one. None means the first one."""
        if name is None and self.models:
            return self.models[0]
        return self._by_name.get(name or "")


def serve_models(
    client: EngineClient, metrics: Metrics, *, chat_template: str | Path | None = None
) -> list[ServedModel]:
    """The text side of every model the engine has loaded; raises CheckpointError or ConfigError."""
    served = []
    for info in client.models:
        tokenizer = Tokenizer.load(info.path, chat_template=chat_template)
        tokenizer.compile_templates()
        if tokenizer.chat_template is None:
            log.info("%s has no chat template; it answers /v1/completions only", info.name)
        model = ServedModel(
            info=info,
            tokenizer=tokenizer,
            client=client,
            metrics=metrics.model(info.name),
            defaults=recommended_sampling(info.path),
            created=int(time.time()),
            tokenizer_sha256=tokenizer_sha256(info.path),
        )
        served.append(model)
    return served
