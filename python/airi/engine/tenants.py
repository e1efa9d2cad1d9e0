"""What tenants are due: weights and quotas, told to the core."""

from __future__ import annotations

import math
from collections.abc import Iterable
from threading import Lock

from airi import _core
from airi.engine.loading import HostedModel
from airi.errors import ConfigError

__all__ = ["Tenants"]

_MOST_TENANT = 2**63 - 1
_MOST_WITH_QUOTAS = 64
"""Of the core, per model; all models have the same."""
_ROUNDING = 1e-9
"""0.57 of 100 blocks is a little below 57, and ten tenths a little below 1."""


class Tenants:
    """Checks what is said of tenants, tells the core, and keeps quotas shares of what models can count on.

    *Thread safety*: any thread; a lock guards quotas and models.
    *Invariant*: all quotas together are at most 1, and every model that serves has them.
    """

    def __init__(self, runtime: _core.Runtime, models: Iterable[HostedModel]) -> None:
        self._runtime = runtime
        self._lock = Lock()
        self._quotas: dict[int, float] = {}
        self._models = {model.index for model in models}

    def set(self, tenant: int, weight: float, kv_quota: float | None) -> None:
        """As `Engine.set_tenant`. Raises ConfigError; then nothing has changed."""
        if not -_MOST_TENANT <= tenant <= _MOST_TENANT:
            raise ConfigError(
                f"tenant is {tenant}; it must be a whole number of 64 bits with a sign", field="tenant"
            )
        if not 0 < weight < math.inf:
            raise ConfigError(
                f"weight of tenant {tenant} is {weight:g}; it must be a positive number", field="weight"
            )
        with self._lock:
            if kv_quota is not None:
                self._check_quota(tenant, kv_quota)
            try:
                self._runtime.set_tenant(tenant, weight)
            except ValueError as error:
                raise ConfigError(f"weight of tenant {tenant}: {error}", field="weight") from None
            if kv_quota is not None:
                self._quotas[tenant] = kv_quota
                for model in self._models:
                    self._tell(tenant, model)
                if kv_quota == 0:
                    del self._quotas[tenant]

    def share_out(self, models: Iterable[HostedModel]) -> None:
        """Keeps the quotas in these models, and no others: some came or went, and all can count on other amounts."""
        with self._lock:
            self._models = {model.index for model in models}
            for tenant in self._quotas:
                for model in self._models:
                    self._tell(tenant, model)

    def yield_all(self) -> None:
        """Keeps next to nothing until `share_out`: where models are to count on less, what is kept of what they had
        must not end requests that fit beside what will be kept."""
        with self._lock:
            for tenant in self._quotas:
                for model in self._models:
                    self._tell(tenant, model, most=1)

    def _check_quota(self, tenant: int, kv_quota: float) -> None:
        name = f"kv_quota of tenant {tenant}"
        if not 0.0 <= kv_quota <= 1.0:
            raise ConfigError(f"{name} is {kv_quota:g}; it must be in [0, 1]", field="kv_quota")
        others = [quota for other, quota in self._quotas.items() if other != tenant]
        kept = math.fsum(others)
        if kept + kv_quota > 1 + _ROUNDING:
            raise ConfigError(
                f"{name} is {kv_quota:g}; all together must be at most 1, and other tenants have {kept:g}",
                field="kv_quota",
            )
        if kv_quota > 0 and len(others) >= _MOST_WITH_QUOTAS:
            raise ConfigError(
                f"{name}: at most {_MOST_WITH_QUOTAS} tenants of a model can have a quota", field="kv_quota"
            )

    def _tell(self, tenant: int, model: int, most: int | None = None) -> None:
        blocks = int(self._quotas[tenant] * self._runtime.capacity(model) + _ROUNDING)
        self._runtime.set_kv_quota(tenant, model, blocks if most is None else min(blocks, most))
