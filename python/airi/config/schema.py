"""`airi.yaml` as one frozen value. What it says of files and other parts is checked elsewhere: here is its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from airi.config.collections import Collection
from airi.config.models import Engine, Model
from airi.config.rollouts import Releases, Rollout
from airi.config.routes import Route
from airi.config.rules import Content, Policies
from airi.config.tenants import Tenant
from airi.config.values import (
    Bytes,
    FilePath,
    Name,
    Part,
    PositiveNumber,
    Text,
    Whole,
    accepts,
    address,
    mistaken,
)

__all__ = ["Config", "Cors", "Observability", "OpenRoutes", "Server", "Tls"]


def _check_state(state: str) -> str:
    kind, _, rest = state.partition("://")
    path = rest.removeprefix("/")
    if kind == "sqlite" and (path == rest or not path or path.endswith("/") or path == ":memory:"):
        raise mistaken(_STATES)
    return state


def _must_be_false(value: bool) -> bool:  # noqa: FBT001
    if value:
        raise mistaken("false; this version of AIRI never logs them")
    return value


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


_STATES = "sqlite:///PATH, with four slashes for an absolute one, or postgresql://USER@HOST/DATABASE"
State = Annotated[
    str,
    address("sqlite", "postgresql", "postgres", example=_STATES, needs_host=False),
    AfterValidator(_check_state),
]


_REDIS = "an address such as redis://host:6379"
Counters = Annotated[
    Annotated[str, address("redis", "rediss", "unix", example=_REDIS, needs_host=False)] | None,
    BeforeValidator(_empty_is_none),
]


class Tls(Part):
    """HTTPS."""

    cert: FilePath
    """Certificate chain (PEM)."""
    key: FilePath
    """Private key of the certificate (PEM)."""


class Cors(Part):
    """Scripts of other web origins."""

    origins: tuple[Text, ...] = Field(default=(), strict=False)
    """Origins whose scripts may call; * for all."""


class OpenRoutes(Part):
    """Pages that need no key although tenants have some; /health, /ready and /version never do."""

    metrics: bool = False
    """/metrics."""
    openapi: bool = False
    """/openapi.json."""


class Server(Part):
    """Where the gateway listens, and what it keeps."""

    later: ClassVar[tuple[str, ...]] = ("distributed",)
    foreign: ClassVar[dict[str, str]] = {
        "address": "host",
        "database_url": "state",
        "redis": "shared_counters",
        "redis_url": "shared_counters",
        "max_body": "body_limit",
        "api_key": "tenants",
        "api_keys": "tenants",
        "master_key": "tenants",
        "docs": "open.openapi",
    }

    host: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9.:%_\[\]-]{1,255}$"), accepts("a host name or an IP address")
    ] = "127.0.0.1"
    """Address to listen on; another than this machine's own needs tenants."""
    port: Annotated[int, Whole(0, 65535)] = 8000
    """Port; 0 takes a free one."""
    grpc_port: Annotated[int, Whole(0, 65535)] | None = None
    """Port of the Open Inference Protocol over gRPC, which the extra grpc brings; left out: HTTP alone."""
    state: State = Field(default="sqlite:///./airi.db", repr=False)
    """Where keys, budgets and rollouts are kept, a file from this one's folder; PostgreSQL for several gateways."""
    shared_counters: Counters = Field(default=None, repr=False)
    """Redis that counts for several gateways; left out: exact in this process, which shares no limits."""
    tls: Tls | None = None
    """HTTPS instead of HTTP."""
    cors: Cors = Cors()
    """Scripts of other web origins."""
    body_limit: Bytes = 32 * 2**20
    """Largest request body accepted."""
    drain_timeout_s: PositiveNumber = 120.0
    """Seconds that running requests get after SIGTERM."""
    open: OpenRoutes = OpenRoutes()
    """Pages that need no key."""


class Observability(Part):
    """What can be seen of the system."""

    later: ClassVar[tuple[str, ...]] = ("otlp",)

    prometheus: bool = True
    """Whether there is /metrics."""
    log_prompts: Annotated[bool, AfterValidator(_must_be_false)] = False
    """Prompts and answers are never logged in this version."""
    audit: FilePath | None = None
    """File that gets a line for every decision, without prompts, answers and keys."""


class Config(Part):
    """airi.yaml: what is served, to whom, and under which rules."""

    later: ClassVar[tuple[str, ...]] = (
        "workflows",
        "autoscaling",
        "distributed",
    )
    foreign: ClassVar[dict[str, str]] = {
        "model_list": "models",
        "guardrails": "content",
        "vector_stores": "collections",
        "vector_store_registry": "collections",
        "policy": "policies",
    }

    version: Annotated[int, Whole(1, 1), accepts("1")]
    """Of this format: 1."""
    server: Server = Server()
    """Where the gateway listens, and what it keeps."""
    engine: Engine = Engine()
    """What runs the models."""
    models: Annotated[tuple[Model, ...], Field(strict=False, json_schema_extra={"minItems": 1})]
    """What is served."""
    releases: Releases = Field(default_factory=dict)
    """By line (a model's name or alias) and id: a version of each model that goes together. Of a model with several
    versions that says none, each version is one."""
    rollouts: Mapping[Name, Rollout] = Field(default_factory=dict)
    """By line: how traffic moves from one release to the next."""
    routes: tuple[Route, ...] = Field(default=(), strict=False)
    """Names that stand for one of several models, by rules."""
    collections: tuple[Collection, ...] = Field(default=(), strict=False)
    """Texts that are found by what they mean."""
    tenants: tuple[Tenant, ...] = Field(default=(), strict=False)
    """Who may call; left out: everybody on this machine, and nobody else."""
    policies: Policies | None = None
    """What they may do; left out: use every model."""
    content: Content = Content()
    """What texts may hold."""
    observability: Observability = Observability()
    """What can be seen of it all."""

    @property
    def versioned(self) -> tuple[Model, ...]:
        """Models whose versions come and go while they are served: those with several, and those that releases name."""
        named = {
            name for releases in self.releases.values() for members in releases.values() for name in members
        }
        return tuple(m for m in self.models if len(m.versions) > 1 or (m.versions and m.name in named))
