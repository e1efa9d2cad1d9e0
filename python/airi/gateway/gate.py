"""The one way from an HTTP request to a model.

Every route that is not open passes here once its caller is known and before anything is spent on the request:
what a caller may do, and how much, is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airi.errors import AiriError
from airi.gateway.errors import denied
from airi.gateway.http import CallRecord, Receive, Scope, Send, record_of
from airi.gateway.middleware import ASGIApp
from airi.gateway.models import ModelRegistry, ServedModel
from airi.policy.decisions import Action, Decider, Resource
from airi.policy.principal import priority_class

if TYPE_CHECKING:
    from airi.gateway.generation import Generation
    from airi.gateway.limits import Limiter
    from airi.policy.audit import AuditLog

__all__ = ["Gate", "Government", "Guarded", "call_context"]

_SERVER = Resource("Server", "airi")


def call_context(
    record: CallRecord,
    *,
    max_tokens: int,
    stream: bool = False,
    tools: bool = False,
    priority: int | None = None,
) -> dict[str, Any]:
    """What policies may ask of a call to a model."""
    given = record.principal.priority_of(priority)
    return {
        "max_tokens": max_tokens,
        "stream": stream,
        "tools": tools,
        "priority": given,
        "priority_class": priority_class(given),
    }


@dataclass(slots=True)
class Government:
    """What is decided by. Its parts are exchanged while it serves; a call ends with those that it began with."""

    decider: Decider
    limiter: Limiter | None = None
    """None: nothing is limited."""
    audit: AuditLog | None = None


class Gate:
    """Finds the model that a request names, decides on the call and counts what it uses.

    *Thread safety*: none; event loop only. *Invariant*: no call reaches an engine without a decision.
    """

    def __init__(self, models: ModelRegistry, government: Government) -> None:
        self._models = models
        self._government = government
        self._resources = {model.name: Resource("Model", model.name) for model in models.models}

    def admit(
        self,
        record: CallRecord,
        action: Action,
        name: str | None,
        context: Callable[[ServedModel], Mapping[str, Any]],
    ) -> ServedModel:
        """The model for this call, noted in its record; raises a 404 or a 403. None means the first model.

        `context` gives what policies may ask of the call.
        """
        model = self._models.find(name)
        record.model = model.name
        self._decide(record, action, self._resources[model.name], context(model))
        return model

    def admit_to_server(self, record: CallRecord, action: Action) -> None:
        """Decides on a call that is about the server itself; raises a 403."""
        self._decide(record, action, _SERVER, {})

    @asynccontextmanager
    async def counted(
        self, record: CallRecord, generation: Generation, priority: int | None
    ) -> AsyncIterator[None]:
        """Holds the most that a generation may use, raising a 429 where that is over a limit, and gives back the rest.

        What ends with an error before anything has come was not used.
        """
        limiter = self._government.limiter
        if limiter is None or record.model is None:
            yield
            return
        kind = priority_class(record.principal.priority_of(priority))
        held = await limiter.reserve(record, record.model, kind, *generation.most)
        failed = False
        try:
            yield
        except AiriError:
            failed = True
            raise
        finally:
            prompt, answer = generation.most[0], generation.num_generated
            used = None if failed and not answer else (prompt, answer)
            await limiter.settle(held, record.model, used)

    def _decide(
        self, record: CallRecord, action: Action, resource: Resource, context: Mapping[str, Any]
    ) -> None:
        decision = self._government.decider.decide(record.principal, action, resource, context)
        record.action = action
        if self._government.audit is not None:
            self._government.audit.note(record.request_id, record.principal, action, resource, decision)
        if not decision.allowed:
            raise denied(decision.policies)


class Guarded:
    """A route about the server itself behind a decision."""

    def __init__(self, app: ASGIApp, gate: Gate, action: Action) -> None:
        self._app, self._gate, self._action = app, gate, action

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or raise a 403."""
        self._gate.admit_to_server(record_of(scope), self._action)
        await self._app(scope, receive, send)
