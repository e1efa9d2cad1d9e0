"""The routes about the server itself: models, health, version, metrics, OpenAPI. All are raw ASGI callables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec import UNSET

from airi import __version__
from airi.gateway.errors import model_not_found, unavailable
from airi.gateway.gate import Gate
from airi.gateway.http import Receive, Scope, Send, record_of, respond
from airi.gateway.metrics import CONTENT_TYPE, Metrics
from airi.gateway.models import ModelRegistry, ServedModel
from airi.gateway.openai.schemas_common import HealthResponse, Model, ModelList, VersionResponse


class ListModels:
    """`/v1/models`: every name and alias of what the caller may use."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET."""
        usable = self._gate.usable(record_of(scope))
        body = ModelList(data=[_model(name, model) for name, model in usable.items()])
        await respond(send, 200, msgspec.json.encode(body))


class GetModel:
    """`/v1/models/{id}`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 404 for a name that is not served, or not to this caller."""
        name = str(scope["path_params"]["model"])
        usable = self._gate.usable(record_of(scope))
        if name not in usable:
            raise model_not_found(name, list(usable))
        await respond(send, 200, msgspec.json.encode(_model(name, usable[name])))


class Health:
    """`/health`: this process answers."""

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 503 when an engine was given up and the process is about to end."""
        check_lives(self._models)
        await respond(send, 200, msgspec.json.encode(HealthResponse(status="ok")))


class Ready:
    """`/ready`: every engine serves."""

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 503 while an engine starts again or drains."""
        check_serve(self._models.models)
        upstreams: dict[str, Literal["up", "down"]] = {
            model.name: "up" if model.upstream.is_up else "down"
            for model in self._models.models
            if model.upstream is not None
        }
        body = HealthResponse(status="ok", upstreams=upstreams or UNSET)
        await respond(send, 200, msgspec.json.encode(body))


class Version:
    """`/version`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET."""
        await respond(send, 200, msgspec.json.encode(VersionResponse(version=__version__)))


class MetricsPage:
    """`/metrics` in Prometheus' text format."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET."""
        await respond(send, 200, self._metrics.render(), content_type=CONTENT_TYPE)


class OpenApiPage:
    """`/openapi.json`, made once at the start."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET."""
        await respond(send, 200, self._document)


def check_lives(models: ModelRegistry) -> None:
    """Raises a 503 once an engine was given up."""
    for model in models.models:
        if model.client.dead is not None:
            raise unavailable(str(model.client.dead))


def check_serve(models: Collection[ServedModel]) -> None:
    """Raises a 503 for the first whose engine starts again or drains, and where all are upstreams that are down.

    An upstream that is down beside others is no reason to send no calls here at all.
    """
    down = True
    for model in models:
        if not model.client.alive or model.client.draining:
            raise unavailable(f"the engine of {model.name} does not serve at the moment")
        down &= model.upstream is not None and not model.upstream.is_up
    if down and models:
        raise unavailable("no upstream can be reached at the moment", code="upstream_unavailable")


def _model(name: str, model: ServedModel) -> Model:
    return Model(
        id=name,
        created=model.created,
        root=model.name,
        max_model_len=model.window,
        task=model.info.task,
        dimensions=model.info.vector_size if model.info.task == "embed" else UNSET,
    )
