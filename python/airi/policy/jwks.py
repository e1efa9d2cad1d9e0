"""The public keys of issuers: fetched beside requests, kept through outages."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import jwt
import msgspec

from airi.errors import AiriError
from airi.policy.fetch import FetchError, fetch
from airi.policy.oidc import is_fetchable

__all__ = ["INTERVAL_S", "KEPT_S", "TTL_S", "Fetch", "Issuer", "Settings"]

TTL_S = 600.0
"""Seconds after which keys are fetched again."""
INTERVAL_S = 30.0
"""Seconds between two attempts, whatever tokens come: nobody can make this process call an issuer more often."""
KEPT_S = 86_400.0
"""Seconds for which keys are believed that could not be fetched again: an issuer that withdraws a key while it is out
of reach is heard within a day."""
_MOST_KEYS = 64
_LEAST_RSA_BITS = 2048
_BY_KIND = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC P-256": ("ES256",),
    "EC P-384": ("ES384",),
    "EC P-521": ("ES512",),
    "OKP Ed25519": ("EdDSA",),
}

log = logging.getLogger("airi.policy")

Fetch = Callable[[str], bytes]
Settings = tuple[str | None, frozenset[str]]
"""Where an issuer's keys are, None: where its discovery document says; and the algorithms they may be used with."""


class Issuer:
    """The keys of one issuer, by their id and an algorithm that fits them. Looking one up does no I/O.

    *Thread safety*: none; one event loop. Documents are fetched on a thread.
    *Invariant*: at most one attempt to fetch runs, and attempts begin at least INTERVAL_S apart.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        on_change: Callable[[], None],
        get: Fetch = fetch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.settings = settings
        self._jwks_uri, self._algorithms = settings
        self._on_change = on_change
        self._get = get
        self._clock = clock
        self._keys: dict[tuple[str, str], jwt.PyJWK] = {}
        self._document = b""
        self._fetched: float | None = None
        self._attempted: float | None = None
        self.refreshing: asyncio.Task[None] | None = None
        """The attempt that runs now."""

    @property
    def is_believed(self) -> bool:
        """Whether its keys were fetched, and that not longer than KEPT_S ago."""
        return self._fetched is not None and self._clock() - self._fetched <= KEPT_S

    def key(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key of this id, if it may be used so."""
        return self._keys.get((kid, algorithm)) if self.is_believed else None

    def any_key(self, algorithm: str) -> jwt.PyJWK | None:
        """Some key for this algorithm: to do the work that a known one would take."""
        return next((key for (_, name), key in self._keys.items() if name == algorithm), None)

    def refresh_soon(self) -> None:
        """Begins to fetch the keys again, unless that was tried a moment ago or is under way."""
        if self.refreshing is None and (
            self._attempted is None or self._clock() - self._attempted >= INTERVAL_S
        ):
            self._attempted = self._clock()
            self.refreshing = asyncio.get_running_loop().create_task(self._refresh())

    def refresh_if_due(self) -> None:
        """As `refresh_soon`, where the keys are older than TTL_S or there are none."""
        if self._fetched is None or self._clock() - self._fetched >= TTL_S:
            self.refresh_soon()

    def abandon(self) -> None:
        """Gives up an attempt that runs."""
        if self.refreshing is not None:
            self.refreshing.cancel()

    async def _refresh(self) -> None:
        try:
            document = await asyncio.to_thread(self._fetch)
            if document != self._document:
                self._keys = self._read(document)
                self._document = document
                self._on_change()
            self._fetched = self._clock()
        except Exception as error:  # whatever came: the keys that were known stay
            reason = str(error) if isinstance(error, AiriError) else type(error).__name__
            log.warning(
                "keys of issuer %s cannot be fetched, those known go on working: %s", self.name, reason
            )
        finally:
            self.refreshing = None

    def _fetch(self) -> bytes:
        return self._get(self._jwks_uri or self._discover())

    def _discover(self) -> str:
        url = f"{self.name.rstrip('/')}/.well-known/openid-configuration"
        document = _object(self._get(url), url)
        if document.get("issuer") != self.name:
            raise FetchError(f"{url} is of another issuer")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str) or not is_fetchable(uri):
            raise FetchError(f"{url} has no jwks_uri that keys may come from")
        return uri

    def _read(self, document: bytes) -> dict[tuple[str, str], jwt.PyJWK]:
        keys = _object(document, self.name).get("keys")
        if not isinstance(keys, list):
            raise FetchError(f"what issuer {self.name} sends is no key set")
        found: dict[tuple[str, str], jwt.PyJWK] = {}
        for key in keys[:_MOST_KEYS]:
            if isinstance(key, dict):
                for algorithm, parsed in _usable(key, self._algorithms).items():
                    found.setdefault((key["kid"], algorithm), parsed)
        if not found:
            raise FetchError(f"the key set of issuer {self.name} has no key that can be used")
        return found


def _object(document: bytes, source: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FetchError(f"{source} sends no JSON object")
    return value


def _usable(key: dict[str, Any], allowed: frozenset[str]) -> dict[str, jwt.PyJWK]:
    """The key, by every algorithm it may verify: public, for signatures, named, strong enough."""
    kid, kind, said = key.get("kid"), key.get("kty"), key.get("alg")
    if not isinstance(kid, str) or key.get("use", "sig") != "sig":
        return {}
    if kind in ("EC", "OKP"):
        kind = f"{kind} {key.get('crv')}"
    found = {}
    for algorithm in _BY_KIND.get(str(kind), ()):
        if algorithm in allowed and said in (None, algorithm):
            try:
                parsed = jwt.PyJWK(_public(key), algorithm=algorithm)
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                continue
            if kind != "RSA" or parsed.key.key_size >= _LEAST_RSA_BITS:
                found[algorithm] = parsed
    return found


def _public(key: dict[str, Any]) -> dict[str, Any]:
    """Without the private parts, should an issuer send them by mistake."""
    return {name: key[name] for name in ("kty", "kid", "n", "e", "crv", "x", "y") if name in key}
