"""`tenants`: who calls, how much, and with what weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from airi.config.values import Name, Part, PositiveNumber, Seconds, Text, Whole, accepts, address, mistaken
from airi.policy.principal import PriorityClass

__all__ = ["ANYONE", "Auth", "Limits", "Oidc", "Tenant", "TenantLimits"]

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ANYONE = "anyone"
"""What the callers are called where there are no tenants."""
_MOST_PRIORITY = 1000
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_MOST = 2**52


def _check_name(name: str) -> str:
    if name == ANYONE:
        raise mistaken(f"another name than {ANYONE}, which is that of callers without a key")
    return name


def _check_issuer(issuer: str) -> str:
    if any(sign in issuer for sign in "@?#"):
        raise mistaken("an address without a user, a query or a fragment")
    host = issuer.partition("://")[2].split("/")[0]
    if (
        issuer.startswith("http://")
        and (host if host.endswith("]") else host.rsplit(":", 1)[0]) not in _LOOPBACK
    ):
        raise mistaken("an https:// address; http:// for this machine alone")
    return issuer


TenantName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"),
    accepts("1 to 63 letters, digits, dots, dashes and underscores, which begin with a letter or digit"),
    AfterValidator(_check_name),
]
Address = Annotated[
    str,
    address("https", "http", example="an address such as https://idp.example.com"),
    AfterValidator(_check_issuer),
]
Count = Annotated[int, Whole(0, _MOST)]


class Oidc(Part):
    """Tokens of an identity provider, instead of keys or beside them."""

    issuer: Address
    """Who signs the tokens; they and its metadata must say the same."""
    audience: Text
    """For whom tokens must be meant."""
    jwks_uri: Address | None = None
    """Where its keys are; left out: where its metadata says."""
    groups_claim: Text = "groups"
    """The claim that lists a caller's groups."""
    accept_groups: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = Field(
        default=(), strict=False
    )
    """Groups that the provider may put callers into, * for any but operators; none unless said."""
    region_claim: Text | None = None
    """The claim that names a caller's region; left out: the tenant's region counts."""
    algorithms: tuple[Algorithm, ...] = Field(default=(), strict=False)
    """How tokens may be signed; left out: any of these."""


class Auth(Part):
    """How callers show that they belong to a tenant."""

    foreign: ClassVar[dict[str, str]] = {"jwt": "oidc", "prefix": "key_prefix"}

    key_prefix: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"),
        accepts("1 to 32 letters, digits, dashes and underscores, such as sk-acme; never a key"),
    ] = "sk-airi"
    """What its keys begin with; keys themselves are made by `airi keys create`."""
    oidc: Oidc | None = None
    """An identity provider whose tokens are taken."""


class Limits(Part):
    """What may be used; what is left out has no limit. Limits per minute hold for any 60 seconds."""

    foreign: ClassVar[dict[str, str]] = {
        "rpm": "rpm_limit",
        "tpm": "tpm_limit",
        "requests_per_minute": "rpm_limit",
        "tokens_per_minute": "tpm_limit",
        "max_concurrency": "max_parallel_requests",
        "budget": "max_budget",
    }

    rpm_limit: Count | None = None
    """Requests per minute."""
    tpm_limit: Count | None = None
    """Tokens per minute, of prompts and answers together."""
    input_tpm_limit: Count | None = None
    """Tokens of prompts per minute."""
    output_tpm_limit: Count | None = None
    """Tokens of answers per minute."""
    max_parallel_requests: Count | None = None
    """Requests at the same time."""
    max_budget: Annotated[float, Field(ge=0, lt=1e9)] | None = None
    """Money per budget_duration, by the prices of models."""
    budget_duration: Seconds | None = None
    """The period of max_budget; left out: it is for good."""
    max_device_seconds: Annotated[float, Field(ge=0, lt=1e9)] | None = None
    """Measured seconds of device time per device_seconds_duration: of each step a request's part by its tokens, times
    the devices it ran on. Requests that use them up are ended, at most one step over."""
    device_seconds_duration: Seconds | None = None
    """The period of max_device_seconds; left out: they are for good."""

    @property
    def are_any(self) -> bool:
        """Whether anything is limited."""
        periods = ("budget_duration", "device_seconds_duration")
        return any(getattr(self, field) is not None for field in Limits.model_fields if field not in periods)


class TenantLimits(Limits):
    """A tenant's limits: in all, and beside that of single models and classes."""

    models: Mapping[Name, Limits] = Field(default_factory=dict)
    """By model: what the tenant may use of it."""
    classes: Mapping[PriorityClass, Limits] = Field(default_factory=dict)
    """By class of priority: what its requests above 0, of 0 and below 0 may use."""


class Tenant(Part):
    """A tenant: a team, a customer, a job."""

    foreign: ClassVar[dict[str, str]] = {
        "keys": "auth",
        "tenant": "name",
        "id": "name",
        "api_key": "auth.key_prefix",
    }

    name: TenantName
    """What policies, limits and metrics call it."""
    auth: Auth = Auth()
    """How its callers are known."""
    groups: tuple[Name, ...] = Field(default=(), strict=False)
    """Groups that policies speak of."""
    region: (
        Annotated[
            str,
            Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"),
            accepts("1 to 63 letters, digits, dots, dashes and underscores, such as eu"),
        ]
        | None
    ) = None
    """What policies may ask as context.region; left out: nothing, unless a token says."""
    limits: TenantLimits = TenantLimits()
    """What it may use."""
    priority: Annotated[int, Whole(-_MOST_PRIORITY, _MOST_PRIORITY)] = 0
    """Added to what a request asks for itself; higher is served first, below 0 is shed first."""
    max_priority: Annotated[int, Whole(-_MOST_PRIORITY, _MOST_PRIORITY)] | None = None
    """The highest priority of its requests, with that of the tenant added; one that asks for more is refused. Left out:
    the tenant's own, so that requests may ask to be served later than it says, never before."""
    weight: PositiveNumber = 1.0
    """Its share against the other tenants of one priority."""
