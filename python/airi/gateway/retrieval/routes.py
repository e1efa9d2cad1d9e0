"""Routes of collections."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from airi.gateway.gate import Gate
from airi.gateway.guarded import Guarded
from airi.gateway.retrieval.finding import Finder
from airi.gateway.retrieval.retrieve import Retrieve
from airi.gateway.retrieval.rows import CollectionPage, CollectionPages, Rows, Sources
from airi.policy.decisions import Action

__all__ = ["retrieval_routes"]


def retrieval_routes(gate: Gate, finder: Finder, *, body_limit: int) -> list[BaseRoute]:
    """What is answered of collections."""
    rows = Rows(gate, finder, body_limit=body_limit)
    return [
        Route("/v1/retrieve", Retrieve(gate, finder, body_limit=body_limit), methods=["POST"]),
        Route("/v1/collections", Guarded(CollectionPages(finder), gate, Action.LIST_MODELS), methods=["GET"]),
        Route("/v1/collections/{name}", CollectionPage(finder), methods=["GET"]),
        Route("/v1/collections/{name}/sources", Sources(finder), methods=["GET"]),
        Route("/v1/collections/{name}/rows", rows, methods=["GET", "POST"]),
    ]
