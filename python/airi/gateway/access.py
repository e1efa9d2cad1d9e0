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
    """A caller: a name for logs and the numbers the core needs to be fair to it."""

    name: str
    tenant: int = 0
    priority: int = 0


ANYONE = Principal(name="anyone")


class Access:
    """Names the caller of a request. Never keeps a key, only digests.

    *Thread safety*: immutable after construction.
    """

    def __init__(self, api_keys: Iterable[str] = ()) -> None:
        self._digests = tuple(hashlib.sha256(key.strip().encode()).digest() for key in api_keys)

    @property
    def needs_key(self) -> bool:
        """Whether any key is configured."""
        return bool(self._digests)

    def principal(self, path: str, authorization: str | None) -> Principal:
        """The caller, from the `Authorization` header; raises a 401 for one that is not known."""
        if not self._digests or path in OPEN_PATHS:
            return ANYONE
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1")).digest()  # the bytes that came
        known = False
        for digest in self._digests:  # every key is compared, so that time tells nothing
            known |= hmac.compare_digest(digest, given)
        if not known or scheme.lower() != "bearer":
            raise unauthorized()
        return Principal(name=f"key:{given.hex()[:8]}")
