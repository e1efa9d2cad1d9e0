"""Whose tokens are believed, as a user says it. Imports nothing of cryptography."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from airi.errors import ConfigError
from airi.policy.principal import OPERATORS

__all__ = ["ALGORITHMS", "OidcOptions", "is_fetchable"]

ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)
"""All that there are here: with none of them can a public key be taken for a shared secret."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcOptions:
    """One issuer of tokens, and those of its tokens that speak for one tenant."""

    issuer: str
    """As in the tokens' `iss`, letter for letter; its discovery document lies below it."""
    audience: str
    """As in the tokens' `aud`: it tells tenants of one issuer apart."""
    jwks_uri: str | None = None
    """Where the issuer's keys are; left out, the discovery document says."""
    algorithms: tuple[str, ...] = ALGORITHMS
    groups_claim: str = "groups"
    """The claim that names groups: a list of texts, or one text with blanks between; dots lead into objects."""
    accept_groups: tuple[str, ...] = ()
    """The groups that the issuer may put its people into, `*` for any but operators. None unless said: what groups may
    do is written for all tenants, and an issuer is one tenant's own."""

    region_claim: str | None = None
    """The claim that names a caller's region, found as `groups_claim` is; left out: the tenant's own counts."""

    def __post_init__(self) -> None:
        for field, url in (("issuer", self.issuer), ("jwks_uri", self.jwks_uri)):
            if url is not None and not is_fetchable(url):
                raise ConfigError(
                    f"{field} is {url[:200]!r}; give an https URL without a user, a query or a fragment, "
                    "or an http one on this machine",
                    field=field,
                )
        if not self.audience.strip():
            raise ConfigError(
                "audience is empty; name the one that the issuer puts into this tenant's tokens",
                field="audience",
            )
        unknown = [name for name in self.algorithms if name not in ALGORITHMS]
        if unknown or not self.algorithms:
            raise ConfigError(
                f"algorithms are {', '.join(self.algorithms) or 'none'}; accepted: {', '.join(ALGORITHMS)}",
                field="algorithms",
            )
        for field, claim in (("groups_claim", self.groups_claim), ("region_claim", self.region_claim)):
            if claim == "":
                raise ConfigError(f"{field} is empty; name a claim", field=field)

    def accepts_group(self, name: str) -> bool:
        """Whether the issuer may put its people into this group. `*` never makes operators: they are named."""
        return name in self.accept_groups or ("*" in self.accept_groups and name != OPERATORS)


def is_fetchable(url: str) -> bool:
    """Whether keys may be fetched from here: nobody on the way can exchange them."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or "#" in url or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
