"""The admin API, as the OpenAPI document shows it."""

from __future__ import annotations

from airi.gateway.admin import schemas
from airi.gateway.operation import Operation

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
)
