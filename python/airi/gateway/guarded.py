"""Routes about the server itself, behind a decision."""

from __future__ import annotations

from airi.gateway.gate import Gate
from airi.gateway.http import Receive, Scope, Send, record_of
from airi.gateway.middleware import ASGIApp
from airi.policy.decisions import Action

__all__ = ["Guarded"]


class Guarded:
    """A route about the server itself behind a decision."""

    def __init__(self, app: ASGIApp, gate: Gate, action: Action) -> None:
        self._app, self._gate, self._action = app, gate, action

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or raise a 403."""
        self._gate.admit_to_server(record_of(scope), self._action)
        await self._app(scope, receive, send)
