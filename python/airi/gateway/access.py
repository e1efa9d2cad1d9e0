"""Who calls: the one place where principals come from.

A principal is the tenant whose key or token a request bears, or anybody where none is configured. What a principal
may do to a model is decided in one other place, `airi.gateway.gate`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from airi.errors import ConfigError, StateError
from airi.policy import ANYONE, Principal

if TYPE_CHECKING:
    from airi.gateway.options import AppOptions
    from airi.policy.jwt import TokenVerifier
    from airi.policy.ring import KeyWatch
    from airi.policy.tenants import TellsTenants, TenantOptions, Tenants
    from airi.state import Store

# Probes must work without a key; all else is the owner's business.
OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/v2/health/live", "/v2/health/ready"})


class Access:
    """Names the caller of a request. Never keeps a key or a token, only digests.

    *Thread safety*: none; one event loop.
    *Invariant*: keys and tokens speak for the same tenants.
    """

    def __init__(self, keys: _Keys | None = None, *, open_paths: frozenset[str] = OPEN_PATHS) -> None:
        self._keys = keys
        self.open_paths = open_paths
        """What is answered without a key."""

    @property
    def needs_key(self) -> bool:
        """Whether callers must have a key or a token."""
        return self._keys is not None

    def find(self, path: str, authorization: str | None) -> Principal | None:
        """The caller, from the `Authorization` header; None for one that is not known. Does no I/O."""
        keys = self._keys
        if keys is None or path in self.open_paths:
            return ANYONE
        principal = keys.ring.find(authorization)
        if principal is None and keys.verifier is not None:
            return keys.verifier.find(authorization)
        return principal

    async def find_late(self, authorization: str | None) -> Principal | None:
        """As `find`, for one that was not known: its issuer's new keys may be on their way."""
        if self._keys is None or self._keys.verifier is None:
            return None
        return await self._keys.verifier.find_late(authorization)

    @property
    def store(self) -> Store | None:
        """The state that keys are in; None without one."""
        return None if self._keys is None else self._keys.store

    @property
    def tenants(self) -> Tenants | None:
        """Those that are served; None where callers need no key."""
        return None if self._keys is None else self._keys.tenants

    async def refresh(self) -> None:
        """Takes over keys that were changed just now. Where the state does not answer that is left for later."""
        if self._keys is not None and self._keys.watch is not None:
            with suppress(StateError):
                await self._keys.watch.refresh()

    async def tell(self, engine: TellsTenants) -> None:
        """Gives an engine the weights of the tenants. Raises ConfigError where it refuses one."""
        if self._keys is not None:
            await self._keys.tenants.tell(engine)

    async def prepare(self, options: Iterable[TenantOptions]) -> Tenants:
        """Tenants that `use` can put in the place of those that are served: all that can fail of it is done here.

        Raises ConfigError and StateError.
        """
        options = tuple(options)
        if self._keys is None:
            if options:
                raise ConfigError(
                    "tenants cannot be added to a server that was started without keys; start it again",
                    field="tenants",
                )
            from airi.policy.tenants import Tenants

            return Tenants()
        return await self._keys.prepared(options)

    def use(self, tenants: Tenants) -> None:
        """From now on these are served, and no others; requests that run go on."""
        if self._keys is not None:
            self._keys.use(tenants)


class _Keys:
    """The ring, the verifier where there are issuers, and where tenants' numbers come from."""

    def __init__(self, api_keys: tuple[str, ...], store: Store | None, stack: AsyncExitStack) -> None:
        from airi.policy.ring import KeyRing, name_of_fixed
        from airi.policy.tenants import Tenants

        self._fixed = [name_of_fixed(index) for index in range(len(api_keys))]
        self.store = store
        self.watch: KeyWatch | None = None
        self._stack = stack
        self.tenants = Tenants()
        self.ring = KeyRing(self.tenants, api_keys)
        self.verifier: TokenVerifier | None = None

    async def prepared(self, options: tuple[TenantOptions, ...]) -> Tenants:
        """These tenants with their numbers, if nothing speaks against them."""
        tenants = await self._numbered(options)
        if any(option.oidc is not None for option in options):
            from airi.policy.jwt import TokenVerifier, check_issuers
            from airi.policy.tenants import Tenants

            check_issuers(tenants)
            if self.verifier is None:  # for nobody until these are used
                self.verifier = await self._stack.enter_async_context(TokenVerifier(Tenants()))
        return tenants

    def use(self, tenants: Tenants) -> None:
        """Has keys and tokens speak for tenants that were prepared."""
        if self.verifier is not None:
            self.verifier.use(tenants)
        self.ring.use(tenants)
        self.tenants = tenants

    async def _numbered(self, options: tuple[TenantOptions, ...]) -> Tenants:
        from airi.policy.tenants import Tenants

        if self.store is not None:
            return await Tenants.numbered(options, self.store, others=self._fixed)
        known = {name: 1 + index for index, name in enumerate(self._fixed)}
        return Tenants(options, known | self.tenants.numbers)


@asynccontextmanager
async def open_access(options: AppOptions) -> AsyncIterator[Access]:
    """The access that these options describe, kept as the state is until the block ends.

    Raises ConfigError and StateError for options and a state that cannot be used.
    """
    if not options.needs_key:
        yield Access()
        return
    from airi.policy.ring import KeyWatch
    from airi.state import open_store

    async with AsyncExitStack() as stack:
        store = None
        if options.state is not None:
            store = await stack.enter_async_context(await open_store(options.state))
        keys = _Keys(options.api_keys, store, stack)
        keys.use(await keys.prepared(options.tenants))
        if store is not None:
            keys.watch = await stack.enter_async_context(KeyWatch(store, keys.ring))
        yield Access(keys, open_paths=OPEN_PATHS.union(options.open_pages))
