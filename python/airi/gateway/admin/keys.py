"""Keys over HTTP: as `airi keys` makes, shows and ends them."""

from __future__ import annotations

import time

import msgspec

from airi.errors import ConfigError
from airi.gateway.access import Access
from airi.gateway.admin.route import AdminCall
from airi.gateway.admin.schemas import Key, KeyList, NewKey, NewKeyRequest, RotationRequest
from airi.gateway.errors import ApiError, decode_body
from airi.policy.keys import NewKey as MadeKey
from airi.policy.keys import (
    create_key,
    described,
    key_id_of,
    list_keys,
    revoke_key,
    rotate_key,
    seconds_of,
)
from airi.policy.tenants import DEFAULT_PREFIX
from airi.state import KeyRecord, Store

__all__ = ["KeyAdmin"]

_new_key = msgspec.json.Decoder(NewKeyRequest)
_rotation = msgspec.json.Decoder(RotationRequest)


class KeyAdmin:
    """Changes the keys of the state. What is changed counts here at once, in other gateways at their next look."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def list(self, call: AdminCall) -> KeyList:
        """All keys, or those of `?tenant=`."""
        now = time.time()
        records = await list_keys(self._store, tenant=call.query.get("tenant"))
        return KeyList(data=[_shown(record, now) for record in records])

    async def create(self, call: AdminCall) -> NewKey:
        """A new key of a tenant that is served."""
        asked = decode_body(_new_key, call.body)
        store, prefix = self._store, self._prefix_of(asked.tenant)
        made = await create_key(store, asked.tenant, prefix=prefix, lifetime_s=_lifetime(asked.expires))
        return await self._made(made)

    async def rotate(self, call: AdminCall) -> NewKey:
        """A key in place of another, which goes on for a while."""
        asked = decode_body(_rotation, call.body)
        overlap_s, lifetime_s = seconds_of("overlap", asked.overlap), _lifetime(asked.expires)
        key_id = key_id_of(call.path["key"])
        return await self._made(
            await rotate_key(self._store, key_id, overlap_s=overlap_s, lifetime_s=lifetime_s)
        )

    async def revoke(self, call: AdminCall) -> Key:
        """Ends a key for good."""
        record = await revoke_key(self._store, key_id_of(call.path["key"]))
        await self._access.refresh()
        return _shown(record, time.time())

    @property
    def _store(self) -> Store:
        if self._access.store is None:
            raise ApiError(
                409,
                "this server has no state that keys are in: start it with tenants or --state",
                code="no_state",
            )
        return self._access.store

    def _prefix_of(self, tenant: str) -> str:
        """What the tenant's keys begin with; raises ConfigError for one that is not served."""
        served = self._access.tenants
        listed = {} if served is None else {option.name: option.key_prefix for option in served.options}
        if listed and tenant not in listed:
            raise ConfigError(
                f"tenant is {tenant[:100]!r}, which is not served; accepted: one of: {', '.join(listed)}",
                field="tenant",
            )
        return listed.get(tenant, DEFAULT_PREFIX)

    async def _made(self, made: MadeKey) -> NewKey:
        await self._access.refresh()
        return msgspec.convert({**described(made.record, time.time()), "key": made.text}, NewKey)


def _lifetime(expires: str | None) -> int | None:
    return None if expires is None else seconds_of("expires", expires)


def _shown(record: KeyRecord, now: float) -> Key:
    return msgspec.convert(described(record, now), Key)
