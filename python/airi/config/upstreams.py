"""`models[].upstream`: a model that another OpenAI-compatible server runs, and how that is called."""

from __future__ import annotations

from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from airi.config.values import Part, Seconds, Text, Whole, accepts, address, mistaken

__all__ = ["Breaker", "Upstream"]

_EXAMPLE = "an address such as http://gpu1:8000/v1, with what stands before /chat/completions"


def _check_base(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise mistaken("an address without a user; api_key has the key")
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith("/completions"):
        raise mistaken(_EXAMPLE)
    return url.rstrip("/")


Key = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,4096}$"), accepts("a key, such as ${UPSTREAM_KEY}")]


class Breaker(Part):
    """Leaves an upstream alone that fails again and again."""

    failures: Annotated[int, Whole(1, 1000)] = 5
    """Failures in a row after which no call is made."""
    open_s: Seconds = 30
    """For how long; then one call finds out whether it is back."""


class Upstream(Part):
    """Another server, and how it is called."""

    foreign: ClassVar[dict[str, str]] = {
        "api_base": "base_url",
        "url": "base_url",
        "key": "api_key",
        "name": "model",
        "timeout": "timeout_s",
        "stream_timeout": "idle_timeout_s",
        "num_retries": "max_retries",
        "context_window": "max_model_len",
        "forward_client_headers_to_llm_api": "trusted",
    }

    base_url: Annotated[
        str,
        Field(max_length=2048),
        address("http", "https", example=_EXAMPLE),
        AfterValidator(_check_base),
    ]
    """Its address, with what stands before /chat/completions: http://gpu1:8000/v1."""
    model: Text
    """What the model is called there."""
    max_model_len: Annotated[int, Whole(2, 2**30)]
    """Prompt and answer together, in tokens, as it is served there; limits hold as much for an answer of no given
    length."""
    api_key: Key | None = Field(default=None, repr=False)
    """Sent as a bearer token; shown nowhere."""
    tokenizer: Text | None = None
    """Folder with its tokenizer.json, by which prompts are counted before they are sent; left out: each byte counts as
    a token until the upstream has told."""
    timeout_s: Seconds = 600
    """For a whole answer."""
    connect_timeout_s: Seconds = 5
    """For a connection."""
    first_token_timeout_s: Seconds = 120
    """From the request to the first event of its answer."""
    idle_timeout_s: Seconds = 60
    """From one event of an answer to the next."""
    max_retries: Annotated[int, Whole(0, 10)] = 2
    """Further attempts where nothing of an answer had come: no connection, status 429, 502, 503 and 504."""
    circuit_breaker: Breaker = Breaker()
    """When it is left alone."""
    health_interval_s: Seconds = 15
    """How often its list of models is asked for, by which /ready and metrics know whether it is there."""
    cache_salt_key: Key | None = Field(default=None, repr=False)
    """A secret for a server that knows `cache_salt`, as vLLM, SGLang and AIRI do: it is sent a digest by this key of
    tenant and salt, so that no tenant has another's; the same in all gateways before it. Left out: it is sent none."""
    trusted: bool = False
    """Sends it callers' `traceparent`, `tracestate`, `x-airi-session`, and `baggage` with the release of the call, so
    that another AIRI keeps releases and sessions as this one does; left out: no header of a caller's goes along."""
