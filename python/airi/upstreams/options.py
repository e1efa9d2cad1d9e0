"""How an upstream is reached, and how long for. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["UpstreamOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOptions:
    """One model of an OpenAI-compatible server. Times are in seconds."""

    name: str
    """What it is called here; errors name it so."""
    base_url: str
    """With what stands before `/chat/completions`, such as http://gpu1:8000/v1."""
    model: str
    """What it is called there."""
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    """For a whole answer."""
    connect_timeout_s: float = 5.0
    first_token_timeout_s: float = 120.0
    """From the request to the first event of its answer."""
    idle_timeout_s: float = 60.0
    """From one event to the next."""
    max_retries: int = 2
    """After the first attempt, of what may safely be asked again."""
    breaker_failures: int = 5
    """Failures in a row after which it is left alone."""
    breaker_open_s: float = 30.0
    """For how long."""
    health_interval_s: float = 15.0
    cache_salt_key: str | None = field(default=None, repr=False)
    """What callers' salts are made unguessable by; None: it is sent none."""
    trusted: bool = False
    """Whether it is told what a call is part of: its trace, session and release."""
