"""The routes of the protocol that say what is served: metadata, readiness, the repository's index."""

from __future__ import annotations

import msgspec

from airi import __version__
from airi.gateway.errors import ApiError, decode_body, model_not_found
from airi.gateway.gate import Gate
from airi.gateway.http import Receive, Scope, Send, read_body, record_of, respond
from airi.gateway.kserve.input import OUTPUTS, TEXT_INPUT
from airi.gateway.kserve.schemas import (
    IndexEntry,
    IndexRequest,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from airi.gateway.models import ModelRegistry, ServedModel
from airi.gateway.system import check_lives, check_serve
from airi.policy.decisions import Action

__all__ = ["GetModel", "GetModelReady", "GetServer", "Index", "Live", "Ready"]

_INDEX = msgspec.json.Decoder(IndexRequest)
_EXTENSIONS = ["generate", "model_repository"]


class GetServer:
    """`/v2`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET."""
        body = ServerMetadata(version=__version__, extensions=_EXTENSIONS)
        await respond(send, 200, msgspec.json.encode(body))


class Live:
    """`/v2/health/live`."""

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 503 when an engine was given up and the process is about to end."""
        check_lives(self._models)
        await respond(send, 200, msgspec.json.encode(ServerLive(live=True)))


class Ready:
    """`/v2/health/ready`."""

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 503 while an engine starts again or drains."""
        check_serve(self._models.models)
        await respond(send, 200, msgspec.json.encode(ServerReady(ready=True)))


class GetModel:
    """`/v2/models/{model}`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 404 for a name that is not served, or not to this caller."""
        name, model = _usable(self._gate, scope)
        inputs = [TensorMetadata(name=TEXT_INPUT, datatype="BYTES", shape=[-1])]
        outputs = [TensorMetadata(name=out, datatype=kind, shape=[-1]) for out, kind in OUTPUTS.items()]
        body = ModelMetadata(name=name, versions=[model.version], inputs=inputs, outputs=outputs)
        await respond(send, 200, msgspec.json.encode(body))


class GetModelReady:
    """`/v2/models/{model}/ready`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 503 for one that does not serve at the moment, else as `GetModel`."""
        name, model = _usable(self._gate, scope)
        check_serve([model])
        await respond(send, 200, msgspec.json.encode(ModelReady(name=name, ready=True)))


class Index:
    """`/v2/repository/index`: what the caller may use."""

    def __init__(self, gate: Gate, *, body_limit: int) -> None:
        self._gate = gate
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        record = record_of(scope)
        self._gate.admit_to_server(record, Action.LIST_MODELS)
        data = await read_body(scope, receive, self._body_limit)
        request = decode_body(_INDEX, data, refused={}) if data else IndexRequest()
        models = {model.name: model for model in self._gate.usable(record).values()}
        entries = [_entry(model) for model in models.values()]
        listed = [entry for entry in entries if entry.state == "READY" or not request.ready]
        await respond(send, 200, msgspec.json.encode(listed))


def _entry(model: ServedModel) -> IndexEntry:
    try:
        check_serve([model])
    except ApiError as error:
        return IndexEntry(name=model.name, version=model.version, state="UNAVAILABLE", reason=error.message)
    return IndexEntry(name=model.name, version=model.version, state="READY")


def _usable(gate: Gate, scope: Scope) -> tuple[str, ServedModel]:
    name = str(scope["path_params"]["model"])
    usable = gate.usable(record_of(scope))
    if name not in usable:
        raise model_not_found(name, list(usable))
    return name, usable[name]
