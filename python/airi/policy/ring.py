"""The keys that are accepted now, in memory: looked up at every request, refreshed beside them."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from airi.errors import AiriError
from airi.policy.keys import digest_of
from airi.policy.principal import ANYONE, Principal
from airi.policy.tenants import Tenants
from airi.state import KeyRecord, Store

__all__ = ["POLL_S", "KeyRing", "KeyWatch", "bearer_of", "name_of_fixed"]

POLL_S = 2.0
"""Seconds between looks at the store. A key that is revoked, or made, anywhere counts here after this time and what
one query takes: the longest that a revoked key goes on working while the store answers. While it does not, the keys
that were known go on working, and end when they expire."""

log = logging.getLogger("airi.policy")


class _Entry(NamedTuple):
    digest: bytes
    ends: float
    principal: Principal


_NOBODY = _Entry(bytes(32), -math.inf, ANYONE)


def bearer_of(authorization: str | None) -> tuple[bool, bytes]:
    """Whether the scheme of an `Authorization` header is Bearer, and what follows it, as the bytes that came."""
    scheme, _, text = (authorization or "").partition(" ")
    return scheme.lower() == "bearer", text.strip().encode("latin-1", "replace")


def name_of_fixed(index: int) -> str:
    """The tenant of the key that was given at this place when the server was started; no tenant's name has a colon."""
    return f"flag:{index + 1}"


class KeyRing:
    """Names the principal of a key. Does no I/O, and keeps digests only.

    The table is asked for the digest of what came: whatever is wrong with a key, the same steps are taken, and a
    caller cannot choose a digest that resembles a known one.

    *Thread safety*: none; one event loop.
    *Invariant*: an entry's principal is that of the tenants in use.
    """

    def __init__(
        self, tenants: Tenants, fixed: Iterable[str] = (), *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._tenants = tenants
        self._fixed = tuple(digest_of(key.strip().encode()) for key in fixed)
        self._records: dict[str, KeyRecord] = {}
        self._entries: dict[bytes, _Entry] = {}
        self.use(tenants)

    def find(self, authorization: str | None) -> Principal | None:
        """Whose key an `Authorization` header holds; None where it holds none that is accepted now."""
        bearer, text = bearer_of(authorization)
        digest = digest_of(text)
        entry = self._entries.get(digest, _NOBODY)
        same = hmac.compare_digest(entry.digest, digest)
        return entry.principal if bearer & same & (entry.ends > self._clock()) else None

    def update(self, records: Iterable[KeyRecord]) -> None:
        """Takes over keys that are new or have changed."""
        for record in records:
            self._records[record.id] = record
            self._place(record)

    def use(self, tenants: Tenants) -> None:
        """From now on keys speak for these tenants, and those of no tenant among them for nobody."""
        self._tenants = tenants
        self._entries.clear()
        for index, digest in enumerate(self._fixed):
            name = name_of_fixed(index)
            principal = Principal(tenant=name, number=tenants.number(name) or 1 + index)
            # The first of two equal keys counts.
            self._entries.setdefault(digest, _Entry(digest, math.inf, principal))
        for record in self._records.values():
            self._place(record)

    def _place(self, record: KeyRecord) -> None:
        digest = bytes.fromhex(record.digest)
        principal = self._tenants.principal(record.tenant, record.number, key_id=record.id)
        ends = math.inf if record.ends is None else record.ends
        if principal is None or ends <= self._clock():
            self._entries.pop(digest, None)
        else:
            self._entries[digest] = _Entry(digest, ends, principal)


class KeyWatch:
    """Keeps a ring as its store is, with a look at it every `interval_s` seconds.

    *Thread safety*: none; one event loop.
    """

    def __init__(self, store: Store, ring: KeyRing, *, interval_s: float = POLL_S) -> None:
        self._store = store
        self._ring = ring
        self._interval_s = interval_s
        self._count = 0
        self._failing = False
        self._refreshing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Reads all keys, then watches. Raises StateError where they cannot be read at all."""
        await self.refresh()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Takes over what has changed since the last look."""
        async with self._refreshing:  # what was read first must not be placed last
            records, self._count = await self._store.keys(since=self._count)
            self._ring.update(records)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.refresh()
            except Exception as error:  # a watch that ended would leave revoked keys alive for good
                if not self._failing:
                    reason = str(error) if isinstance(error, AiriError) else type(error).__name__
                    log.error("keys cannot be refreshed, those known go on working: %s", reason)
                self._failing = True
            else:
                if self._failing:
                    log.warning("keys are refreshed again")
                self._failing = False
