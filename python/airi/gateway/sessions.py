"""Which model each session has: of a route that keeps them together, in this gateway."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

__all__ = ["MOST_SESSIONS", "SessionTable"]

MOST_SESSIONS = 1 << 14
"""Of one tenant; the one that was used least lately makes way."""


class SessionTable:
    """The models of sessions, by tenant, so that no tenant makes those of another way.

    It is this process's own and begins empty: among several gateways a session that comes to another one is routed
    there as a new one is, unless what stands before them sends each session to one gateway.
    *Thread safety*: none. *Invariant*: no tenant has more than MOST_SESSIONS, each in a few bytes.
    """

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._models: dict[str, OrderedDict[bytes, str]] = {}

    def find(self, tenant: str, route: str, session: str) -> str | None:
        """The model that a session has."""
        models, key = self._models.get(tenant), _key(route, session)
        if models is None or key not in models:
            return None
        models.move_to_end(key)
        return models[key]

    def keep(self, tenant: str, route: str, session: str, model: str, *, before: str | None) -> None:
        """Has a session keep a model; where it had another than `before` meanwhile, that stays."""
        models, key = self._models.setdefault(tenant, OrderedDict()), _key(route, session)
        if models.get(key) not in (None, before):
            return
        models[key] = model
        models.move_to_end(key)
        if len(models) > self._most:
            models.popitem(last=False)


def _key(route: str, session: str) -> bytes:
    return blake2b(f"{route}\0{session}".encode(), digest_size=16).digest()
