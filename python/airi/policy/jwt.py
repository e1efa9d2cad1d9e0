"""Tokens of OpenID Connect issuers as keys: verified in memory, with the issuer's public keys.

What a token is refused for is told to nobody: there is one answer for all, and one signature is verified for each,
with a key of no meaning where the token names none that is known.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Self

import jwt
import msgspec

from airi.errors import ConfigError
from airi.policy.fetch import FETCH_S, fetch
from airi.policy.jwks import Fetch, Issuer, Settings
from airi.policy.keys import digest_of
from airi.policy.oidc import ALGORITHMS, OidcOptions
from airi.policy.principal import Principal
from airi.policy.ring import bearer_of
from airi.policy.tenants import Tenants

__all__ = ["LEEWAY_S", "TokenVerifier", "check_issuers"]

LEEWAY_S = 30.0
"""How far an issuer's clock may be off."""
_LONGEST = 16 * 1024
"""Bytes of a token that is looked at."""
_MOST_CACHED = 4096
_LOOK_S = 5.0
_WAIT_S = 2 * FETCH_S + 1  # a discovery document and a key set


class _Header(msgspec.Struct):
    """What of a token's header counts; anything in `crit` asks for what is not understood."""

    alg: str
    kid: str
    crit: Any = None


class _Claims(msgspec.Struct):
    """The claims that decide, in types that leave no room."""

    iss: str
    aud: str | list[str]
    exp: float
    nbf: float | None = None
    iat: float | None = None
    sub: str | None = None


class _Parts(NamedTuple):
    """A token as it came, verified by nobody."""

    header: _Header
    claims: _Claims
    payload: bytes
    signed: bytes
    signature: bytes


_header_decoder = msgspec.json.Decoder(_Header)
_claims_decoder = msgspec.json.Decoder(_Claims)
_object_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_MALFORMED = _Parts(_Header("RS256", ""), _Claims("", "", 0.0), b"", bytes(300), b"1" * 256)


class _Verified(NamedTuple):
    """What is remembered of a token."""

    until: float
    issuer: Issuer
    principal: Principal


def check_issuers(
    tenants: Tenants,
) -> tuple[dict[tuple[str, str], tuple[str, OidcOptions]], dict[str, Settings]]:
    """Who speaks for whom, by issuer and audience, and the settings of every issuer.

    Raises ConfigError where two tenants could not be told apart, or say different things of one issuer.
    """
    tenant_of: dict[tuple[str, str], tuple[str, OidcOptions]] = {}
    wanted: dict[str, Settings] = {}
    for option in tenants.options:
        oidc = option.oidc
        if oidc is None:
            continue
        other, _ = tenant_of.setdefault((oidc.issuer, oidc.audience), (option.name, oidc))
        if other != option.name:
            raise ConfigError(
                f"tenants {other} and {option.name} have the same issuer and audience; tokens would speak for both",
                field="oidc",
            )
        settings = (oidc.jwks_uri, frozenset(oidc.algorithms))
        if wanted.setdefault(oidc.issuer, settings) != settings:
            raise ConfigError(
                f"issuer {oidc.issuer} has another jwks_uri or other algorithms at tenant {option.name}",
                field="oidc",
            )
    return tenant_of, wanted


class TokenVerifier:
    """Names the principal of a token: the tenant whose issuer and audience it bears.

    *Thread safety*: none; one event loop. Never holds a token: verified ones are remembered by their digest.
    *Invariant*: a principal is given only for a token whose signature was verified with a key that its issuer still
    has, within the token's own times.
    """

    def __init__(
        self,
        tenants: Tenants,
        *,
        get: Fetch = fetch,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._get, self._clock, self._monotonic = get, clock, monotonic
        self._cache: dict[bytes, _Verified] = {}
        self._issuers: dict[str, Issuer] = {}
        self._tenant_of: dict[tuple[str, str], tuple[str, OidcOptions]] = {}
        self._task: asyncio.Task[None] | None = None
        self.use(tenants)

    def use(self, tenants: Tenants) -> None:
        """From now on tokens speak for these tenants. Raises ConfigError; then nothing has changed."""
        tenant_of, wanted = check_issuers(tenants)
        known = self._issuers
        self._tenants, self._tenant_of = tenants, tenant_of
        self._issuers = {
            name: known[name]
            if name in known and known[name].settings == settings
            else self._issuer(name, settings)
            for name, settings in wanted.items()
        }
        self._cache.clear()
        for name in known.keys() - self._issuers.keys():
            known[name].abandon()
        if self._task is not None:
            self._refresh_due()

    async def __aenter__(self) -> Self:
        """Begins to fetch every issuer's keys, and sees to it from now on. Waits for none."""
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for issuer in self._issuers.values():
            issuer.abandon()

    def find(self, authorization: str | None) -> Principal | None:
        """Whose token an `Authorization` header holds; None where it holds none that is accepted now. Does no I/O."""
        bearer, text = bearer_of(authorization)
        return self.verify(text) if bearer else None

    def verify(self, token: bytes) -> Principal | None:
        """As `find`, for the token alone."""
        if token.count(b".") != 2 or len(token) > _LONGEST:
            return None
        digest = digest_of(token)
        known = self._cache.get(digest)
        if known is not None and self._clock() < known.until and known.issuer.is_believed:
            return known.principal
        parts = _split(token)
        issuer, key = self._key(parts)
        if not _is_signed(key, parts) or issuer is None:
            return None
        found = self._principal(parts)
        if found is not None:
            while len(self._cache) >= _MOST_CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[digest] = _Verified(parts.claims.exp + LEEWAY_S, issuer, found)
        return found

    async def find_late(self, authorization: str | None) -> Principal | None:
        """As `find`, after the keys that an issuer may have added meanwhile.

        Waits only where they are being fetched just now for want of the key that the token names.
        """
        bearer, text = bearer_of(authorization)
        parts = _split(text) if bearer and len(text) <= _LONGEST else _MALFORMED
        issuer = self._issuers.get(parts.claims.iss)
        if (
            issuer is None
            or issuer.refreshing is None
            or issuer.key(parts.header.kid, parts.header.alg) is not None
        ):
            return None
        await asyncio.wait({issuer.refreshing}, timeout=_WAIT_S)
        return self.find(authorization)

    # -- inside --------------------------------------------------------------------------------

    def _issuer(self, name: str, settings: Settings) -> Issuer:
        return Issuer(name, settings, on_change=self._cache.clear, get=self._get, clock=self._monotonic)

    async def _watch(self) -> None:
        while True:
            self._refresh_due()
            await asyncio.sleep(_LOOK_S)

    def _refresh_due(self) -> None:
        for issuer in self._issuers.values():
            issuer.refresh_if_due()

    def _key(self, parts: _Parts) -> tuple[Issuer | None, jwt.PyJWK]:
        """The issuer, where the token's own key is known, and that key or one that is as much work."""
        kid, algorithm = parts.header.kid, parts.header.alg
        issuer = self._issuers.get(parts.claims.iss)
        if issuer is None or algorithm not in ALGORITHMS:
            return None, _meaningless()
        key = issuer.key(kid, algorithm)
        if key is None:
            issuer.refresh_soon()
            return None, issuer.any_key(algorithm) or _meaningless()
        return issuer, key

    def _principal(self, parts: _Parts) -> Principal | None:
        claims, now = parts.claims, self._clock()
        if claims.exp + LEEWAY_S <= now or parts.header.crit is not None:
            return None
        if any(begin is not None and begin - LEEWAY_S > now for begin in (claims.nbf, claims.iat)):
            return None
        audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        found = [
            self._tenant_of[claims.iss, aud] for aud in audiences if (claims.iss, aud) in self._tenant_of
        ]
        if len({tenant for tenant, _ in found}) != 1:
            return None  # for nobody here, or for two at once
        tenant, oidc = found[0]
        everything = _object_decoder.decode(parts.payload)
        groups, region = _groups(everything, oidc), _region(everything, oidc)
        return self._tenants.principal(tenant, groups=groups, region=region, claims=everything)


def _split(token: bytes) -> _Parts:
    """The parts of a token; those of one that is malformed for whatever is none."""
    try:
        signed, _, signature = token.rpartition(b".")
        header, _, payload = signed.partition(b".")
        content = _decoded(payload)
        return _Parts(
            _header_decoder.decode(_decoded(header)),
            _claims_decoder.decode(content),
            content,
            signed,
            _decoded(signature),
        )
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, RecursionError):
        return _MALFORMED


def _decoded(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _is_signed(key: jwt.PyJWK, parts: _Parts) -> bool:
    try:
        return bool(key.Algorithm.verify(parts.signed, key.key, parts.signature))
    except (jwt.PyJWTError, ValueError, TypeError):
        return False


@cache
def _meaningless() -> jwt.PyJWK:
    """A key that nobody has the other half of. One kind whatever a token names: callers do not choose what it costs."""
    number = base64.urlsafe_b64encode(((1 << 2048) - 1942289).to_bytes(256, "big")).decode()
    return jwt.PyJWK({"kty": "RSA", "n": number, "e": "AQAB"}, algorithm="RS256")


def _groups(claims: dict[str, Any], oidc: OidcOptions) -> tuple[str, ...]:
    """The groups that a token names, of those that its issuer may name."""
    value = _claim(claims, oidc.groups_claim)
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list):
        return ()
    return tuple(name for name in value if isinstance(name, str) and oidc.accepts_group(name))


def _region(claims: dict[str, Any], oidc: OidcOptions) -> str | None:
    """The region that a token names, where its issuer is asked for one."""
    value = None if oidc.region_claim is None else _claim(claims, oidc.region_claim)
    return value if isinstance(value, str) else None


def _claim(claims: dict[str, Any], name: str) -> Any:
    """A claim by its whole name, else by the names of objects with dots between."""
    value: Any = claims.get(name)
    if value is None:
        value = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return value
