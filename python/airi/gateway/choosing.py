"""Which models a call of a route is for: what its session has, what conditions say, what a classifier is told.

A session's model comes first, rules next, and the classifier is asked where neither says anything. All of them choose
alone: whether the call may be made, and how much of it, is decided of each model as it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from airi.gateway.http import watching
from airi.gateway.releases import session_of
from airi.gateway.sessions import SessionTable

if TYPE_CHECKING:
    from airi.gateway.classifying import Classifier
    from airi.gateway.gate import Gate, Government
    from airi.gateway.http import CallRecord, Message, Receive, Send
    from airi.gateway.metrics import Metrics
    from airi.gateway.models import ServedModel
    from airi.gateway.openai.schemas_common import SamplingFields
    from airi.gateway.openai.schemas_pooling import PoolingFields
    from airi.gateway.routes import Chosen, RouteTable, ServedRoute
    from airi.policy.decisions import Action

__all__ = ["Chooser", "RoutedCall"]


class RoutedCall(NamedTuple):
    """A call that a model is chosen for."""

    request: SamplingFields | PoolingFields
    record: CallRecord
    action: Action
    size: int
    """Bytes of its body."""
    context: Callable[[ServedModel], Mapping[str, Any]]
    """What policies may ask of it."""


class Chooser:
    """Chooses for all routes of a gateway. *Thread safety*: none; event loop only."""

    def __init__(self, gate: Gate, government: Government, metrics: Metrics | None) -> None:
        self._gate, self._government, self._metrics = gate, government, metrics
        self._sessions = SessionTable()
        self._routes: RouteTable | None = None
        """Those that the sessions were last compared with."""

    async def choose(self, route: ServedRoute, call: RoutedCall, receive: Receive) -> Chosen:
        """The models for a call. Raises a 400 for a session's name that is none, and AuditUnavailableError and
        LedgerUnavailableError where what was asked cannot be noted or counted.
        """
        from airi.gateway.routes import facts_of

        record = call.record
        kept = self._kept(route, call)
        chosen = route.choose(facts_of(call.request, record, call.action))
        if kept is not None:
            chosen = chosen._replace(models=list(dict.fromkeys((kept, *chosen.models))), kept=kept)
        elif chosen.rule is None and route.classifier is not None and self._may_use(route, call):
            async with watching(receive):
                chosen = await self._classify(route, route.classifier, call, chosen)
        self._tell(route, record, chosen)
        return chosen

    def keeping(self, send: Send, route: ServedRoute, record: CallRecord, chosen: Chosen, name: str) -> Send:
        """Sends what a model answers, and has the session stay with it: before its client can make the next call."""
        session = session_of(record.sent) if route.keeps_sessions else None
        if session is None:
            return send
        tenant = record.principal.tenant
        keep = partial(self._sessions.keep, tenant, route.name, session, name, before=chosen.kept)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":  # of an answer: errors are sent elsewhere
                keep()
            await send(message)

        return sending

    def _may_use(self, route: ServedRoute, call: RoutedCall) -> bool:
        """Whether any model of the route may answer; else nothing is asked about the call, which will be denied."""
        return any(self._gate.permits(call.record, call.action, name, call.context) for name in route.models)

    def _kept(self, route: ServedRoute, call: RoutedCall) -> str | None:
        """The model that the call's session has, where the route still has it and the caller may use it."""
        record = call.record
        session = session_of(record.sent) if route.keeps_sessions else None
        if session is None:
            return None
        self._forget_sessions()
        name = self._sessions.find(record.principal.tenant, route.name, session)
        usable = name in route.models and self._gate.permits(record, call.action, name, call.context)
        return name if usable else None

    def _forget_sessions(self) -> None:
        """Drops what no route has any more, once they were exchanged."""
        routes = self._government.routes
        if routes is not None and routes is not self._routes:
            self._sessions.keep_only({each.name: each.models for each in routes if each.keeps_sessions})
            self._routes = routes

    async def _classify(
        self, route: ServedRoute, classifier: Classifier, call: RoutedCall, chosen: Chosen
    ) -> Chosen:
        from airi.gateway.classifying import Classified, classify, last_text

        asked = self._gate.asked_before(call.record)
        text = last_text(call.request)
        found = Classified(None, "no_text")
        if text.strip():
            admitted = self._gate.admitted_to_classify(asked, route.name, classifier, call.size)
            reserve = partial(self._gate.reserve, asked)
            found = await classify(classifier, text, asked, admitted, reserve)
        if self._metrics is not None:
            self._metrics.classified.labels(route.name, found.label or "", found.outcome).inc()
        # One that the call asks for is found anew, so that it is refused where it is not served.
        named = any(name == b"x-airi-release" for name, _ in call.record.sent)
        draw = asked.draw if asked.draw is not None and asked.draw.given and not named else None
        models = chosen.models if found.label is None else route.in_turn(classifier.labels[found.label])
        return chosen._replace(models=models, classified=found, draw=draw)

    def _tell(self, route: ServedRoute, record: CallRecord, chosen: Chosen) -> None:
        failed = {f"rules[{index}]": reason for index, reason in chosen.failed}
        if self._metrics is not None:
            for rule in failed:
                self._metrics.failed_conditions.labels(route.name, rule).inc()
        if chosen.classified is not None and chosen.classified.outcome not in ("ok", "no_text"):
            failed["classifier"] = chosen.classified.outcome
        audit = self._government.audit
        if audit is not None and failed:
            told = tuple(f"{what}: {reason}" for what, reason in failed.items())
            audit.note_route(record.request_id, record.principal, route.name, told)
