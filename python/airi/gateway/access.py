"""Who calls: the one place where principals come from.

A principal is the tenant whose key or token a request bears, or anybody where none is configured. What a principal
may do to a model is decided in one other place, `airi.gateway.gate`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from airi.policy import ANYONE, Principal

if TYPE_CHECKING:
    from airi.gateway.options import AppOptions
    from airi.policy.jwt import TokenVerifier
    from airi.policy.ring import KeyRing
    from airi.policy.tenants import Tenants

# Probes must work without a key; all else is the owner's business.
OPEN_PATHS = frozenset({"/health", "/ready", "/version"})


class Access:
    """Names the caller of a request. Never keeps a key or a token, only digests.

    *Thread safety*: none; one event loop.
    """

    def __init__(
        self,
        ring: KeyRing | None = None,
        verifier: TokenVerifier | None = None,
        *,
        tenants: Tenants | None = None,
        open_paths: frozenset[str] = OPEN_PATHS,
    ) -> None:
        self._ring = ring
        self._verifier = verifier
        self.tenants = tenants
        """Those whose weights the engine is to know."""
        self.open_paths = open_paths
        """What is answered without a key."""

    @property
    def needs_key(self) -> bool:
        """Whether callers must have a key or a token."""
        return self._ring is not None

    def find(self, path: str, authorization: str | None) -> Principal | None:
        """The caller, from the `Authorization` header; None for one that is not known. Does no I/O."""
        if self._ring is None or path in self.open_paths:
            return ANYONE
        principal = self._ring.find(authorization)
        if principal is None and self._verifier is not None:
            return self._verifier.find(authorization)
        return principal

    async def find_late(self, authorization: str | None) -> Principal | None:
        """As `find`, for one that was not known: its issuer's new keys may be on their way."""
        return None if self._verifier is None else await self._verifier.find_late(authorization)


@asynccontextmanager
async def open_access(options: AppOptions) -> AsyncIterator[Access]:
    """The access that these options describe, kept as the state is until the block ends.

    Raises ConfigError and StateError for options and a state that cannot be used.
    """
    if not options.needs_key:
        yield Access()
        return
    from airi.policy.ring import KeyRing, KeyWatch, name_of_fixed
    from airi.policy.tenants import Tenants
    from airi.state import open_store

    fixed = [name_of_fixed(index) for index in range(len(options.api_keys))]
    async with AsyncExitStack() as stack:
        if options.state is None:
            tenants = Tenants(options.tenants, {name: 1 + index for index, name in enumerate(fixed)})
            ring = KeyRing(tenants, options.api_keys)
        else:
            store = await stack.enter_async_context(await open_store(options.state))
            tenants = await Tenants.numbered(options.tenants, store, others=fixed)
            ring = KeyRing(tenants, options.api_keys)
            await stack.enter_async_context(KeyWatch(store, ring))
        verifier = None
        if any(option.oidc is not None for option in options.tenants):
            from airi.policy.jwt import TokenVerifier

            verifier = await stack.enter_async_context(TokenVerifier(tenants))
        yield Access(ring, verifier, tenants=tenants, open_paths=OPEN_PATHS | options.open_paths)
