"""Who leads: of all gateways with one state, at most one moves rollouts on.

The lease keeps two from doing the same work; what keeps a leader that was stopped for a while from undoing what the
next one did is the revision of every document. So clocks may differ by less than the lease is long.
"""

from __future__ import annotations

import msgspec

from airi.state import Store

__all__ = ["Lease"]

_KIND = "lease"


class _Held(msgspec.Struct, frozen=True):
    holder: str
    until_ms: int


class Lease:
    """A lease by name, which `holder` may have for `length_ms` at a time.

    *Thread safety*: none; one event loop.
    """

    def __init__(self, store: Store, name: str, holder: str, length_ms: int) -> None:
        self._store, self._name, self._holder, self._length_ms = store, name, holder, length_ms
        self._revision = 0
        self._renews_ms = 0

    async def hold(self, now_ms: int) -> bool:
        """Whether this holder has the lease, taken or renewed where it can be. Raises StateError."""
        if self._revision and now_ms < self._renews_ms:
            return True
        record = await self._store.document(_KIND, self._name)
        if record is not None and record.revision != self._revision:
            held = msgspec.json.decode(record.body, type=_Held)
            if held.holder != self._holder and now_ms < held.until_ms:
                self._revision = 0
                return False
        return await self._put(now_ms, now_ms + self._length_ms, 0 if record is None else record.revision)

    async def release(self, now_ms: int) -> None:
        """Lets the next one have it at once; does nothing where it is another's."""
        if self._revision:
            await self._put(now_ms, 0, self._revision)
            self._revision = 0

    async def _put(self, now_ms: int, until_ms: int, revision: int) -> bool:
        body = msgspec.json.encode(_Held(self._holder, until_ms)).decode()
        self._revision = await self._store.put_document(_KIND, self._name, body, revision=revision) or 0
        self._renews_ms = now_ms + self._length_ms // 3
        return bool(self._revision)
