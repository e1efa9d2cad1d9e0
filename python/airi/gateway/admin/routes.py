"""All routes of the admin API, and how the OpenAPI document describes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.routing import Route

from airi.gateway.access import Access
from airi.gateway.admin.keys import KeyAdmin
from airi.gateway.admin.requests import RequestAdmin
from airi.gateway.admin.rollouts import RolloutAdmin
from airi.gateway.admin.route import AdminRoute, Work
from airi.gateway.admin.server import ServerAdmin
from airi.gateway.explaining import Traces
from airi.gateway.gate import Gate, Government
from airi.gateway.models import ModelRegistry

if TYPE_CHECKING:
    from airi.config.reload import Reloader
    from airi.gateway.rollouts import Rollouts

__all__ = ["admin_routes"]


def admin_routes(
    models: ModelRegistry,
    access: Access,
    government: Government,
    reloader: Reloader | None,
    hide: Callable[[str], str],
    rollouts: Rollouts | None = None,
    *,
    traces: Traces,
) -> list[Route]:
    """The routes below /admin; `hide` makes a path without keys; `traces`: of calls to models."""
    gate = Gate(models, government)
    keys, server = KeyAdmin(access), ServerAdmin(models, access, government, reloader)
    moving, requests = RolloutAdmin(rollouts, reloader), RequestAdmin(models, traces)

    def route(path: str, **works: Work) -> Route:
        return Route(
            path, AdminRoute(works, gate, needs_key=access.needs_key, hide=hide), methods=list(works)
        )

    def promoting(verb: str, work: Work) -> Route:
        app = AdminRoute(
            {"POST": work}, gate, needs_key=access.needs_key, hide=hide, promotes=moving.model_of
        )
        return Route(f"/admin/rollouts/{{line:path}}/{verb}", app, methods=["POST"])

    return [
        route("/admin/config", GET=server.config),
        route("/admin/reload", POST=server.reload),
        route("/admin/keys", GET=keys.list, POST=keys.create),
        route("/admin/keys/{key}", DELETE=keys.revoke),
        route("/admin/keys/{key}/rotate", POST=keys.rotate),
        route("/admin/tenants", GET=server.tenants),
        route("/admin/requests/{request:path}", GET=requests.show),
        route("/admin/models/{model:path}/sleep", POST=server.sleep),
        route("/admin/models/{model:path}/wake", POST=server.wake),
        route("/admin/rollouts", GET=moving.list),
        promoting("start", moving.start),
        promoting("promote", moving.promote),
        promoting("abort", moving.abort),
        route("/admin/versions", GET=moving.versions),
        route("/admin/versions/{model:path}/{version}/load", POST=moving.load),
        route("/admin/versions/{model:path}/{version}/unload", POST=moving.unload),
        route("/admin/versions/{model:path}/{version}/retire", POST=moving.retire),
    ]
