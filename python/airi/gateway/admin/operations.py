"""The admin API, as the OpenAPI document shows it."""

from __future__ import annotations

from airi.gateway.admin import schemas
from airi.gateway.operation import Operation
from airi.lifecycle.status import LineStatus, VersionStatus
from airi.observability.requests import RequestRecord

__all__ = ["ADMIN_OPERATIONS"]

_READ = (403, 503)
_WRITE = (400, 403, 409, 413, 415, 503)

ADMIN_OPERATIONS = (
    Operation(
        path="/admin/config",
        method="get",
        name="showConfig",
        summary="The config in force, and the last one that was refused.",
        response=schemas.ConfigInForce,
        errors=(*_READ, 409),
    ),
    Operation(
        path="/admin/reload",
        method="post",
        name="reloadConfig",
        summary="Read the config again, as SIGHUP does: it is applied whole or refused whole.",
        request=schemas.Nothing,
        response=schemas.Reloaded,
        errors=_WRITE,
    ),
    Operation(
        path="/admin/keys",
        method="get",
        name="listKeys",
        summary="All keys, or those of one tenant.",
        query=("tenant",),
        response=schemas.KeyList,
        errors=(*_READ, 409),
    ),
    Operation(
        path="/admin/keys",
        method="post",
        name="createKey",
        summary="Make a key, which is shown this once.",
        request=schemas.NewKeyRequest,
        response=schemas.NewKey,
        errors=_WRITE,
    ),
    Operation(
        path="/admin/keys/{key}",
        method="delete",
        name="revokeKey",
        summary="End a key for good.",
        response=schemas.Key,
        errors=(*_READ, 400, 404, 409),
    ),
    Operation(
        path="/admin/keys/{key}/rotate",
        method="post",
        name="rotateKey",
        summary="Make a key in place of another, which goes on for a while.",
        request=schemas.RotationRequest,
        response=schemas.NewKey,
        errors=(*_WRITE, 404),
    ),
    Operation(
        path="/admin/tenants",
        method="get",
        name="listTenants",
        summary="The tenants of the config, with what their limits have left.",
        response=schemas.TenantList,
        errors=_READ,
    ),
    Operation(
        path="/admin/requests/{request}",
        method="get",
        name="explainRequest",
        summary="What became of a call to a model and why, by its x-request-id or its answer's id; never its texts.",
        response=RequestRecord,
        errors=(*_READ, 404),
    ),
    *(
        Operation(
            path=f"/admin/models/{{model}}/{verb}",
            method="post",
            name=f"{verb}Model",
            summary=summary,
            request=schemas.Nothing,
            response=schemas.ModelState,
            errors=(*_WRITE, 404),
        )
        for verb, summary in (
            ("sleep", "Lend a model's memory to the others; answers when it sleeps."),
            ("wake", "Bring a model back; answers when its requests may run."),
        )
    ),
    Operation(
        path="/admin/rollouts",
        method="get",
        name="listRollouts",
        summary="Every line of requests that has releases, with its rollout.",
        response=schemas.RolloutList,
        errors=_READ,
    ),
    Operation(
        path="/admin/rollouts/{line}/start",
        method="post",
        name="startRollout",
        summary="Begin a rollout by the steps and gates of the config.",
        request=schemas.RolloutStart,
        response=LineStatus,
        errors=(*_WRITE, 404),
    ),
    Operation(
        path="/admin/rollouts/{line}/promote",
        method="post",
        name="promoteRollout",
        summary="Go on behind what a rollout waits for, or end it at once with the candidate as stable.",
        request=schemas.Promotion,
        response=LineStatus,
        errors=(*_WRITE, 404),
    ),
    Operation(
        path="/admin/rollouts/{line}/abort",
        method="post",
        name="abortRollout",
        summary="Give stable all traffic again.",
        request=schemas.Nothing,
        response=LineStatus,
        errors=(*_WRITE, 404),
    ),
    Operation(
        path="/admin/versions",
        method="get",
        name="listVersions",
        summary="Every version of every model that is registered, and where it stands.",
        response=schemas.VersionList,
        errors=_READ,
    ),
    *(
        Operation(
            path=f"/admin/versions/{{model}}/{{version}}/{verb}",
            method="post",
            name=f"{verb}Version",
            summary=summary,
            request=schemas.Nothing,
            response=VersionStatus,
            errors=(*_WRITE, 404),
        )
        for verb, summary in (
            ("load", "Have a version loaded and kept, also while no line needs it; answers at once."),
            ("unload", "Keep a version no more; it goes once no line needs it."),
            ("retire", "Have a version never loaded again; its record stays."),
        )
    ),
)
