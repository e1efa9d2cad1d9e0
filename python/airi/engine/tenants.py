"""What tenants are due: weights and quotas, told to the core."""

from __future__ import annotations

import math

from airi import _core
from airi.engine.loading import HostedModel
from airi.errors import ConfigError

__all__ = ["Tenants"]

_MOST_TENANT = 2**63 - 1


class Tenants:
    """Checks what is said of tenants, tells the core, and knows the quotas for models that come later.

    *Thread safety*: that of the core's calls: any thread.
    """

    def __init__(self, runtime: _core.Runtime) -> None:
        self._runtime = runtime
        self._quotas: dict[int, float] = {}

    def set(
        self, tenant: int, weight: float, kv_quota: float | None, models: tuple[HostedModel, ...]
    ) -> None:
        """As `Engine.set_tenant`, of these models."""
        if not -_MOST_TENANT <= tenant <= _MOST_TENANT:
            raise ConfigError(
                f"tenant is {tenant}; it must be a whole number of 64 bits with a sign", field="tenant"
            )
        if not 0 < weight < math.inf:
            raise ConfigError(
                f"weight of tenant {tenant} is {weight:g}; it must be a positive number", field="weight"
            )
        if kv_quota is not None:
            if not 0.0 <= kv_quota <= 1.0:
                raise ConfigError(
                    f"kv_quota of tenant {tenant} is {kv_quota:g}; it must be in [0, 1]", field="kv_quota"
                )
            for model in models:
                self._set_quota(tenant, kv_quota, model)
            self._quotas[tenant] = kv_quota
        try:
            self._runtime.set_tenant(tenant, weight)
        except ValueError as error:
            raise ConfigError(f"weight of tenant {tenant}: {error}", field="weight") from None

    def welcome(self, model: HostedModel) -> None:
        """Keeps the quotas in a model that has come."""
        for tenant, kv_quota in list(self._quotas.items()):
            self._set_quota(tenant, kv_quota, model)

    def _set_quota(self, tenant: int, kv_quota: float, model: HostedModel) -> None:
        try:
            self._runtime.set_kv_quota(tenant, model.index, int(kv_quota * model.num_kv_blocks))
        except ValueError as error:
            raise ConfigError(f"kv_quota of tenant {tenant}: {error}", field="kv_quota") from None
