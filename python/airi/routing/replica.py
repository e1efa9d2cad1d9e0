"""One engine of several, and one request to them."""

from __future__ import annotations

from airi.routing.choosing import ModelRouter
from airi.transport.client import EngineClient
from airi.transport.messages import GenerateRequest, ModelInfo
from airi.transport.stream import OpenRequest, Sink

__all__ = ["Replica", "Request"]


class Replica:
    """One engine of a set, and what the set last saw of it."""

    __slots__ = ("client", "is_up", "lives", "models", "name", "refuses")

    def __init__(self, name: str, client: EngineClient) -> None:
        self.name = name
        self.client = client
        self.is_up = False
        self.lives = 0
        """Times that it came."""
        self.refuses = False
        """Whether it takes no more requests, of which its goodbye is still on its way."""
        self.models: list[ModelInfo] = []
        """What it was last seen to serve."""

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self.client.alive and not self.client.draining and not self.refuses


class Request(OpenRequest):
    """One that this set owes an end. Without a replica it waits for one."""

    __slots__ = ("num_tokens", "replica", "router")

    def __init__(self, message: GenerateRequest, sink: Sink, router: ModelRouter) -> None:
        super().__init__(message, sink)
        self.router = router
        self.replica: Replica | None = None
        self.num_tokens = 0
