"""Bodies of the admin API. Moments are texts such as 2026-01-31T12:00:00Z, durations such as 90d or 12h."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from airi.lifecycle.status import LineStatus, VersionStatus


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty object."""


class NewKeyRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whose key is to be made, and for how long."""

    tenant: str
    expires: str | None = None
    """How long it is accepted, such as 90d; null: until it is revoked."""


class RotationRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a key is to be replaced."""

    overlap: str = "24h"
    """How long the key itself goes on; 0s ends it now."""
    expires: str | None = None
    """How long the new key is accepted; null: for as long as the key was."""


class Key(msgspec.Struct, kw_only=True):
    """An API key without what is secret about it."""

    id: str
    tenant: str
    prefix: str
    state: Literal["active", "rotated", "retired", "revoked", "expired"]
    created: str
    expires: str | None
    revoked: str | None
    retires: str | None
    replaced_by: str | None


class NewKey(Key, kw_only=True):
    """A key that was just made."""

    key: str
    """The key itself, shown this once."""


class KeyList(msgspec.Struct, kw_only=True):
    """Keys, the oldest first."""

    data: list[Key]
    object: Literal["list"] = "list"


class RefusedReload(msgspec.Struct, kw_only=True):
    """A reload that changed nothing."""

    at: str
    mistakes: list[str]


class ConfigInForce(msgspec.Struct, kw_only=True):
    """The config that is served."""

    path: str
    digest: str
    """SHA-256 of the file and of the texts that it names."""
    loaded_at: str
    config: dict[str, Any]
    """As the file says it, secrets masked, variables in place of what they gave."""
    last_refusal: RefusedReload | None


class Reloaded(msgspec.Struct, kw_only=True):
    """What a reload has changed."""

    digest: str
    loaded_at: str
    changes: list[str]


class TenantLimit(msgspec.Struct, kw_only=True):
    """One limit of a tenant: of all its calls, or of those to one model or of one class."""

    name: str
    model: str | None
    priority_class: str | None
    limit: float
    remaining: float
    reset_s: float | None
    """Seconds until all of it is free again if nothing else is used; null: no time says."""


class Tenant(msgspec.Struct, kw_only=True):
    """A tenant that is served."""

    name: str
    groups: list[str]
    priority: int
    max_priority: int
    weight: float
    region: str | None
    limits: list[TenantLimit]


class TenantList(msgspec.Struct, kw_only=True):
    """All tenants."""

    data: list[Tenant]
    object: Literal["list"] = "list"


class ModelState(msgspec.Struct, kw_only=True):
    """Where a model stands."""

    id: str
    state: Literal["awake", "asleep"]


class RolloutStart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A rollout that is to begin."""

    candidate: str | None = None
    """The release to try; null: the one that the config names, or the only other one."""


class Promotion(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How far a rollout is to go on."""

    full: bool = False
    """Whether the candidate is stable at once; else the rollout goes on behind what it waits for."""


class RolloutList(msgspec.Struct, kw_only=True):
    """All lines, with their rollouts."""

    data: list[LineStatus]
    object: Literal["list"] = "list"


class VersionList(msgspec.Struct, kw_only=True):
    """All versions that are registered."""

    data: list[VersionStatus]
    object: Literal["list"] = "list"
