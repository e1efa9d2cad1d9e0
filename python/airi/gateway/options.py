"""What a user may choose about the HTTP side. Imports nothing heavy, so that engines start before the server loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from airi._hosts import is_loopback
from airi.errors import ConfigError
from airi.policy.tenants import TenantOptions
from airi.upstreams.options import UpstreamOptions

if TYPE_CHECKING:
    from airi.outputs import Task

__all__ = ["AppOptions", "ServerOptions", "UpstreamModel"]

DEFAULT_BODY_LIMIT = 32 * 2**20
_PAGES = ("/metrics", "/openapi.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """How the application behaves towards its clients."""

    api_keys: tuple[str, ...] = ()
    """Each is a tenant of its own. Without keys, a state and tenants everybody on this machine may call."""
    state: str | None = None
    """URL of the database that keys are in; see `airi.state`."""
    tenants: tuple[TenantOptions, ...] = ()
    """Those that are served, where any are listed; else every tenant that has a key."""
    metrics_page: bool = True
    """Whether there is /metrics."""
    open_pages: tuple[str, ...] = ()
    """Of `/metrics` and `/openapi.json`: those that need no key."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose scripts may call; `*` for all; empty turns CORS off."""
    body_limit: int = DEFAULT_BODY_LIMIT
    """Bytes of a request body accepted at most."""

    def __post_init__(self) -> None:
        if not all(key.strip() for key in self.api_keys):
            raise ConfigError("api_key is empty; leave the option out to let everybody call", field="api_key")
        for page in self.open_pages:
            if page not in _PAGES:
                raise ConfigError(
                    f"open_pages has {page!r}; accepted: {', '.join(_PAGES)}", field="open_pages"
                )

    @property
    def needs_key(self) -> bool:
        """Whether callers must have a key or a token."""
        return bool(self.api_keys or self.tenants or self.state is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamModel:
    """A model that another server runs, as it is served here."""

    options: UpstreamOptions
    aliases: tuple[str, ...] = ()
    max_model_len: int
    """Prompt and answer together, in tokens."""
    tokenizer: Path | None = None
    """Folder of its tokenizer; None: tokens are counted as if each byte were one, until the upstream has counted."""
    place: int = 0
    """Among all models: which of them is first matters to requests that name none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where and how the gateway listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    grpc_port: int | None = None
    """Of the Open Inference Protocol over gRPC; None: not served."""
    app: AppOptions = field(default_factory=AppOptions)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    chat_template: Path | str | None = None
    """Replaces the template of every model."""
    drain_timeout_s: float = 120.0
    """How long running requests may take to finish after SIGTERM."""
    upstreams: tuple[UpstreamModel, ...] = ()
    """In the order of their places."""
    tasks: Mapping[str, Task] = field(default_factory=dict)
    """What models are said to do; one that does something else is not served."""

    def __post_init__(self) -> None:
        if not self.app.needs_key and not is_loopback(self.host):
            raise ConfigError(
                f"host is {self.host!r}, which others can reach, and there are no keys: give --api-key or --state, "
                "or listen on 127.0.0.1",
                field="host",
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be in [0, 65535]", field="port")
        if self.grpc_port is not None and not 0 <= self.grpc_port <= 65535:
            raise ConfigError(f"grpc_port is {self.grpc_port}; it must be in [0, 65535]", field="grpc_port")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together; one of them is missing", field="tls_cert")
        if not self.drain_timeout_s > 0:
            raise ConfigError(
                f"drain_timeout_s is {self.drain_timeout_s:g}; it must be positive", field="drain_timeout_s"
            )

    @property
    def scheme(self) -> str:
        """http or https."""
        return "http" if self.tls_cert is None else "https"
