"""Who calls: the one place where principals come from.

A principal is the holder of one of the configured keys, or anybody where none is configured. What a principal may do
to a model is decided in one other place, `airi.gateway.gate`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from airi.gateway.errors import unauthorized

# Probes must work without a key; all else is the owner's business.
OPEN_PATHS = frozenset({"/health", "/ready", "/version"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller, as the core needs to know it to be fair to all."""

    tenant: int
    """Its requests share the device evenly with those of every other tenant."""


ANYONE = Principal(tenant=0)


class Access:
    """Names the caller of a request: each key is a tenant of its own. Never keeps a key, only digests.

    *Thread safety*: immutable after construction.
    """

    def __init__(
        self, api_keys: Iterable[str] = (), *, needs_key: bool = False, open_pages: Iterable[str] = ()
    ) -> None:
        """`needs_key`: calls without a key are refused though none is given here; `open_pages`: further open paths."""
        self._open = OPEN_PATHS.union(open_pages)
        self._digests = tuple(hashlib.sha256(key.strip().encode()).digest() for key in api_keys)
        self.needs_key = needs_key or bool(self._digests)

    def principal(self, path: str, authorization: str | None) -> Principal:
        """The caller, from the `Authorization` header; raises a 401 for one that is not known."""
        if not self.needs_key or path in self._open:
            return ANYONE
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1")).digest()  # the bytes that came
        # Every key is compared, so that time tells nothing.
        matches = [hmac.compare_digest(digest, given) for digest in self._digests]
        if True not in matches or scheme.lower() != "bearer":
            raise unauthorized()
        return Principal(tenant=1 + matches.index(True))
