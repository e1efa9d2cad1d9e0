"""Which model each session has: of a route that keeps them together, in this gateway."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Set
from hashlib import blake2b
from typing import Final, NamedTuple

from airi.gateway.metrics import now

__all__ = ["LONGEST_S", "MOST_IN_ALL", "MOST_SESSIONS", "SessionTable"]

MOST_SESSIONS: Final = 1 << 14
"""Of one tenant; the one that was used least lately makes way."""
MOST_IN_ALL: Final = 1 << 17
"""Of all tenants; those of the one that has most make way."""
LONGEST_S: Final = 24 * 3600.0
"""After this time without a call a session begins anew."""
_PART: Final = 8
"""One in so many of a tenant's makes way for others at once, as it takes a look at all tenants."""


class _Kept(NamedTuple):
    route: str
    model: str
    used: float


class SessionTable:
    """The models of sessions, by tenant, so that no tenant makes those of another way while it has less of them.

    It is this process's own and begins empty: among several gateways a session that comes to another one is routed
    there as a new one is, unless what stands before them sends each session to one gateway.
    *Thread safety*: none. *Invariant*: no tenant has more than MOST_SESSIONS and all together no more than MOST_IN_ALL,
    each in a few bytes; those of a tenant are in the order in which they were used last.
    """

    def __init__(
        self, most: int = MOST_SESSIONS, *, in_all: int = MOST_IN_ALL, clock: Callable[[], float] = now
    ) -> None:
        self._most, self._in_all, self._clock = most, in_all, clock
        self._tenants: dict[str, OrderedDict[bytes, _Kept]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Of all tenants."""
        return self._count

    def find(self, tenant: str, route: str, session: str) -> str | None:
        """The model that a session has."""
        kept, key = self._tenants.get(tenant, OrderedDict()), _key(route, session)
        found = kept.get(key)
        if found is None or found.used <= self._clock() - LONGEST_S:
            return None
        kept[key] = found._replace(used=self._clock())
        kept.move_to_end(key)
        return found.model

    def keep(self, tenant: str, route: str, session: str, model: str, *, before: str | None) -> None:
        """Has a session keep a model; where it had another than `before` meanwhile, that stays."""
        if self.find(tenant, route, session) not in (None, before):
            return
        kept, key, at = self._tenants.setdefault(tenant, OrderedDict()), _key(route, session), self._clock()
        self._count += key not in kept
        kept[key] = _Kept(route, model, at)
        kept.move_to_end(key)
        while len(kept) > self._most or next(iter(kept.values())).used <= at - LONGEST_S:
            self._drop(tenant, 1)
        if self._count > self._in_all:
            largest = max(self._tenants, key=lambda each: len(self._tenants[each]))
            self._drop(largest, max(1, len(self._tenants[largest]) // _PART))

    def keep_only(self, models: Mapping[str, Set[str]]) -> None:
        """Drops sessions of other routes than these, and of models that these have no more."""
        for tenant, kept in list(self._tenants.items()):
            for key, each in list(kept.items()):
                if each.model not in models.get(each.route, ()):
                    del kept[key]
                    self._count -= 1
            self._drop(tenant, 0)

    def _drop(self, tenant: str, count: int) -> None:
        """Drops so many of a tenant's, those used least lately."""
        kept = self._tenants[tenant]
        for _ in range(count):
            kept.popitem(last=False)
        self._count -= count
        if not kept:
            del self._tenants[tenant]


def _key(route: str, session: str) -> bytes:
    return blake2b(f"{route}\0{session}".encode(), digest_size=16).digest()
