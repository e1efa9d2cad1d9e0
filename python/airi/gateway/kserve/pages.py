"""The routes of the protocol that say what is served: metadata, readiness, the repository's index."""

from __future__ import annotations

import msgspec

from airi import __version__
from airi.gateway.admin.rollouts import RolloutAdmin
from airi.gateway.admin.route import AdminCall
from airi.gateway.errors import ApiError, decode_body, model_not_found, version_not_found
from airi.gateway.gate import Gate
from airi.gateway.http import Receive, Scope, Send, read_body, record_of, respond
from airi.gateway.kserve.input import OUTPUTS, TEXT_INPUT
from airi.gateway.kserve.schemas import (
    IndexEntry,
    IndexRequest,
    ModelMetadata,
    ModelReady,
    RepositoryChange,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from airi.gateway.models import ModelRegistry, ServedModel
from airi.gateway.rollouts import Rollouts
from airi.gateway.system import check_lives, check_serve
from airi.lifecycle import Version
from airi.lifecycle.status import VersionStatus
from airi.policy.decisions import Action

__all__ = ["GetModel", "GetModelReady", "GetServer", "Index", "Live", "Ready", "Repository"]

_INDEX = msgspec.json.Decoder(IndexRequest)
_CHANGE = msgspec.json.Decoder(RepositoryChange)
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

    def __init__(self, models: ModelRegistry, gate: Gate) -> None:
        self._models, self._gate = models, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 404 for a name or a version that is not served, or not to this caller."""
        name, model = _usable(self._models, self._gate, scope)
        versions = list(self._models.versions_of(name))
        if model.info.task != "generate":  # its endpoints are OpenAI's and vLLM's alone
            platform = f"airi_{model.info.task}"
            other = ModelMetadata(name=name, versions=versions, platform=platform, inputs=[], outputs=[])
            await respond(send, 200, msgspec.json.encode(other))
            return
        inputs = [TensorMetadata(name=TEXT_INPUT, datatype="BYTES", shape=[-1])]
        outputs = [TensorMetadata(name=out, datatype=kind, shape=[-1]) for out, kind in OUTPUTS.items()]
        body = ModelMetadata(name=name, versions=versions, inputs=inputs, outputs=outputs)
        await respond(send, 200, msgspec.json.encode(body))


class GetModelReady:
    """`/v2/models/{model}/ready`."""

    def __init__(self, models: ModelRegistry, gate: Gate) -> None:
        self._models, self._gate = models, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET; 503 for one that does not serve at the moment, else as `GetModel`."""
        name, model = _usable(self._models, self._gate, scope)
        check_serve([model])
        await respond(send, 200, msgspec.json.encode(ModelReady(name=name, ready=True)))


class Index:
    """`/v2/repository/index`: every version of what the caller may use."""

    def __init__(
        self, models: ModelRegistry, gate: Gate, rollouts: Rollouts | None, *, body_limit: int
    ) -> None:
        """`rollouts`: where versions are registered that may not be loaded; None where no model has versions."""
        self._models, self._gate, self._rollouts = models, gate, rollouts
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        record = record_of(scope)
        self._gate.admit_to_server(record, Action.LIST_MODELS)
        data = await read_body(scope, receive, self._body_limit)
        request = decode_body(_INDEX, data, refused={}) if data else IndexRequest()
        usable = {model.name for model in self._gate.usable(record).values()}
        entries = [_entry(model) for model in self._models.all_versions if model.name in usable]
        listed = {(entry.name, entry.version) for entry in entries}
        for version in await self._registered():
            if version.model in usable and (version.model, version.id) not in listed:
                reason = version.reason or str(version.state)
                entries.append(
                    IndexEntry(name=version.model, version=version.id, state="UNAVAILABLE", reason=reason)
                )
        told = [entry for entry in entries if entry.state == "READY" or not request.ready]
        await respond(send, 200, msgspec.json.encode(told))

    async def _registered(self) -> list[Version]:
        if self._rollouts is None:
            return []
        registry = self._rollouts.operator.registry
        await registry.refresh()
        return registry.versions()


class Repository:
    """`/v2/repository/models/{model}/load` and `/unload`, the model being MODEL@VERSION."""

    def __init__(self, moving: RolloutAdmin) -> None:
        self._moving = moving

    async def load(self, call: AdminCall) -> VersionStatus:
        """Has a version loaded and kept; answers at once."""
        return await self._moving.load(_of_version(call))

    async def unload(self, call: AdminCall) -> VersionStatus:
        """Keeps a version no more."""
        return await self._moving.unload(_of_version(call))


def _of_version(call: AdminCall) -> AdminCall:
    """The call by the model and the version that its path names. Raises a 400 for parameters, and without a version."""
    name, _, version = call.path["model"].rpartition("@")
    if not name:
        message = (
            f"model: {version[:200]!r} names no version; accepted: MODEL@VERSION, as the index lists them"
        )
        raise ApiError(400, message, param="model", code="invalid_value")
    if decode_body(_CHANGE, call.body, refused={}).parameters:
        raise ApiError(400, "parameters: none are taken", param="parameters", code="invalid_value")
    return call._replace(path={"model": name, "version": version}, body=b"{}")


def _entry(model: ServedModel) -> IndexEntry:
    try:
        check_serve([model])
    except ApiError as error:
        return IndexEntry(name=model.name, version=model.version, state="UNAVAILABLE", reason=error.message)
    return IndexEntry(name=model.name, version=model.version, state="READY")


def _usable(models: ModelRegistry, gate: Gate, scope: Scope) -> tuple[str, ServedModel]:
    """The model of a path where the caller may use it, in the version that the path names, else the stable one."""
    name = str(scope["path_params"]["model"])
    usable = gate.usable(record_of(scope))
    if name not in usable:
        raise model_not_found(name, list(usable))
    version = scope["path_params"].get("version")
    if version is None:
        return name, usable[name]
    versions = models.versions_of(name)
    found = models.version(usable[name].name, version) if version in versions else None
    if found is None:
        raise version_not_found(name, version, list(versions))
    return name, found
