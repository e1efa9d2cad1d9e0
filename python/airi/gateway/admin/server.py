"""What is served, over HTTP: the config in force and its reload, tenants with what they have left, models' memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from airi._units import moment
from airi.gateway.access import Access
from airi.gateway.admin.route import AdminCall
from airi.gateway.admin.schemas import (
    ConfigInForce,
    ModelState,
    Nothing,
    RefusedReload,
    Reloaded,
    Tenant,
    TenantLimit,
    TenantList,
)
from airi.gateway.errors import ApiError, decode_body, model_not_found
from airi.gateway.gate import Government
from airi.gateway.models import ModelRegistry, ServedModel
from airi.policy.ledger import LimitName, Remaining
from airi.policy.ledger.limits import MICRO

if TYPE_CHECKING:
    from airi.config.reload import Reloader
    from airi.policy.tenants import TenantOptions

__all__ = ["ServerAdmin"]

_nothing = msgspec.json.Decoder(Nothing)
_IN_MICRO = (LimitName.BUDGET, LimitName.DEVICE)


class ServerAdmin:
    """Shows and changes what this one server does."""

    def __init__(
        self, models: ModelRegistry, access: Access, government: Government, reloader: Reloader | None
    ) -> None:
        self._models, self._access = models, access
        self._government, self._given = government, reloader

    async def config(self, _: AdminCall) -> ConfigInForce:
        """The config in force."""
        reloader = self._reloader
        file, refusal = reloader.file, reloader.last_refusal
        return ConfigInForce(
            path=str(file.path),
            digest=file.digest,
            loaded_at=moment(reloader.loaded_at),
            config=file.document.root.masked(),
            last_refusal=None
            if refusal is None
            else RefusedReload(at=moment(refusal.at), mistakes=list(refusal.mistakes)),
        )

    async def reload(self, call: AdminCall) -> Reloaded:
        """Reads the config again, as SIGHUP does; a 409 has a line for each of its mistakes."""
        decode_body(_nothing, call.body)
        reloader = self._reloader
        outcome = await reloader.reload()
        if not outcome.is_applied:
            raise ApiError(409, "\n".join(outcome.refusals), code="config_refused")
        return Reloaded(
            digest=reloader.file.digest,
            loaded_at=moment(reloader.loaded_at),
            changes=list(outcome.changes),
        )

    async def tenants(self, _: AdminCall) -> TenantList:
        """The listed tenants, with what every limit has left."""
        served = self._access.tenants
        options = () if served is None else served.options
        return TenantList(data=[await self._tenant(option) for option in options])

    async def sleep(self, call: AdminCall) -> ModelState:
        """Lends a model's memory to the others; answers when it sleeps."""
        decode_body(_nothing, call.body)
        model = self._unversioned(call)
        await model.client.sleep(model.engine_name)
        return ModelState(id=model.name, state="asleep")

    async def wake(self, call: AdminCall) -> ModelState:
        """Brings a model back; answers when its requests may run."""
        decode_body(_nothing, call.body)
        model = self._unversioned(call)
        await model.client.wake(model.engine_name)
        return ModelState(id=model.name, state="awake")

    @property
    def _reloader(self) -> Reloader:
        if self._given is None:
            raise ApiError(409, "this server was started without a config", code="no_config")
        return self._given

    def _unversioned(self, call: AdminCall) -> ServedModel:
        name = call.path["model"]
        model = self._models.find(name)
        if model is None:
            raise model_not_found(name, self._models.names)
        if self._models.has_versions(model.name):  # calls that a line gives to it would wait
            message = f"model: {model.name} has versions, which sleep and wake as its rollouts need them"
            raise ApiError(409, message, param="model", code="has_versions")
        return model

    async def _tenant(self, option: TenantOptions) -> Tenant:
        limiter = self._government.limiter
        left = () if limiter is None else await limiter.remaining(option.name)
        return Tenant(
            name=option.name,
            groups=list(option.groups),
            priority=option.priority,
            max_priority=option.highest_priority,
            weight=option.weight,
            region=option.region,
            limits=[_limit(one) for one in left],
        )


def _limit(left: Remaining) -> TenantLimit:
    def amount(number: int) -> float:
        return number / MICRO if left.name in _IN_MICRO else number

    return TenantLimit(
        name=left.name,
        model=left.scope.model,
        priority_class=left.scope.priority_class,
        limit=amount(left.limit),
        remaining=amount(left.remaining),
        reset_s=None if left.reset_us is None else left.reset_us / MICRO,
    )
