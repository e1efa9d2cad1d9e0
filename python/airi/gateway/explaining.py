"""What a call to a model notes of what happens to it, so that it can be told later what it was and why.

What decides and counts is noted as it is: a reference each. Words are made of it once the call has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from airi.gateway.http import CLIENT_GONE_STATUS
from airi.gateway.metrics import now
from airi.gateway.noting import LONGEST_MESSAGE, LONGEST_NAME, ModelTrace, failure_of
from airi.observability.requests import FailedRule, Failure, Recent, RequestRecord, RouteRecord
from airi.policy.decisions import Action

if TYPE_CHECKING:
    from airi.gateway.errors import ApiError
    from airi.gateway.generation import Generation
    from airi.gateway.http import CallRecord
    from airi.gateway.limits import Held
    from airi.gateway.models import ServedModel
    from airi.gateway.releases import Draw
    from airi.gateway.routes import Chosen
    from airi.policy.decisions import Decision

__all__ = ["RequestTrace", "Traces", "trace_of"]

log = logging.getLogger("airi.gateway")

_MOST_INNER: Final = 32
_INNER: Final = frozenset({Action.JUDGE, Action.SHADOW})


class Traces:
    """Begins the trace of each call to a model, and keeps the last ones. *Thread safety*: none; event loop only."""

    def __init__(self, *, hide: Callable[[str], str] = str) -> None:
        """`hide` makes a text of a client's without keys."""
        self.recent: Recent[RequestTrace] = Recent()
        self._hide = hide

    def begin(self, record: CallRecord, path: str) -> RequestTrace:
        """The trace of a request that has come; `path`: the route's."""
        trace = RequestTrace(record, path, self.recent, self._hide)
        self.recent.begin(trace)
        return trace


class RequestTrace:
    """What is noted of one request. It is kept once it has ended, and with it all that goes on behind its answer.

    *Thread safety*: none; event loop only. *Invariant*: holds no text once it has ended.
    """

    __slots__ = (
        "_calls",
        "_deciding",
        "_ended",
        "_error",
        "_hide",
        "_inner",
        "_num_inner",
        "_open",
        "_path",
        "_recent",
        "_record",
        "answer_id",
        "asked",
        "at",
        "route",
        "stream",
    )

    def __init__(
        self, record: CallRecord, path: str, recent: Recent[RequestTrace], hide: Callable[[str], str]
    ) -> None:
        self._record, self._path, self._recent, self._hide = record, path, recent, hide
        self.at = time.time()
        self._calls: list[ModelTrace] = []
        self._inner: list[ModelTrace] = []
        self._num_inner = 0
        self._deciding: ModelTrace | None = None
        self._open = 1
        self._ended: float | None = None
        self._error: Failure | None = None
        self.answer_id = ""
        self.asked: str | None = None
        """The name that the request has for its model."""
        self.stream = False
        self.route: tuple[str, Chosen] | None = None
        """The route of that name, and what it gave."""

    @property
    def id(self) -> str:
        """The request's."""
        return self._record.request_id

    @property
    def own_id(self) -> str:
        """This server's own for it."""
        return self._record.own_id or self._record.request_id

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self._record.principal.tenant

    # -- what happens --------------------------------------------------------------------------

    def ask(self, name: str | None) -> ModelTrace:
        """A model is asked for the request; what is noted until the block is left is of that."""
        call = self._deciding = ModelTrace(self._record, "", name, self._hide)
        self._calls.append(call)
        return call

    def decided(
        self, action: Action, name: str, context: Mapping[str, Any], decision: Decision
    ) -> ModelTrace | None:
        """It was decided on a call: on the one that was asked last, or on one within it, which is given back."""
        if action in _INNER or "route" in context:
            self._deciding = self._begin_inner(action, name)
        call = self._deciding
        if call is not None:
            call.kind, call.context, call.decision = action, context, decision
        return call

    def admitted(self, model: ServedModel, draw: Draw | None) -> None:
        """What was just decided on may go on, with this model, which `draw` gave it."""
        if self._deciding is not None:
            self._deciding.model, self._deciding.draw = model, draw

    def runs(self, generation: Generation) -> None:
        """The model that was asked last gets to work."""
        self._calls[-1].generation = generation

    def counted(self, held: Held) -> None:
        """The request holds its place among others."""
        self._calls[-1].held.append(held)

    def _begin_inner(self, kind: Action, name: str) -> ModelTrace:
        call = ModelTrace(self._record, kind, name, self._hide)
        self._num_inner += 1
        if self._num_inner <= _MOST_INNER:
            self._inner.append(call)
        return call

    def shadowed(self, model: ServedModel) -> Callable[[str], None]:
        """A candidate is to read the answer; what is returned is to be called once, with what came of it."""
        call = next((c for c in self._inner if c.kind == Action.SHADOW), None)
        call = call or self._begin_inner(Action.SHADOW, model.name)
        call.model = model
        self._open += 1

        def ended(outcome: str) -> None:
            call.end(outcome)
            self._close()

        return ended

    def fail(self, error: ApiError) -> None:
        """The caller was told of an error."""
        self._error = failure_of(error)
        if self._calls:
            self._calls[-1].fail(error)

    def end(self) -> None:
        """The request has its answer, or nobody waits for one any more."""
        self._ended = now()
        for call in (*self._calls, *self._inner):
            call.settle()
        self._close()

    def _close(self) -> None:
        self._open -= 1
        if self._open:
            return
        try:
            self._recent.end(self)
        except Exception:  # what happened to the call itself is over
            log.exception("request %s: what became of it cannot be kept", self.id)

    # -- what is told --------------------------------------------------------------------------

    def told(self) -> RequestRecord:
        """What there is to tell now."""
        record, hide = self._record, self._hide
        principal = record.principal
        error = self._error
        if error is None and record.status == CLIENT_GONE_STATUS:
            error = Failure(status=CLIENT_GONE_STATUS, code="client_gone")
        return RequestRecord(
            id=record.request_id,
            own_id=self.own_id,
            answer_id=self.answer_id,
            tenant=principal.tenant,
            key_id=principal.key_id or "",
            dialect=record.dialect.name,
            path=self._path,
            asked=hide(self.asked or "")[:LONGEST_NAME],
            stream=self.stream,
            running=self._ended is None,
            status=record.status,
            took_ms=round(((self._ended or now()) - record.started) * 1e3, 3),
            error=error,
            route=self._route(),
            calls=[call.told() for call in self._calls],
            inner=[call.told() for call in self._inner],
            more_inner=self._num_inner - len(self._inner),
        )

    def _route(self) -> RouteRecord | None:
        if self.route is None:
            return None
        name, chosen = self.route
        failed = [FailedRule(rule=rule, error=error[:LONGEST_MESSAGE]) for rule, error in chosen.failed]
        record = RouteRecord(
            name=name, rule=chosen.rule, models=chosen.models, failed=failed, kept=chosen.kept is not None
        )
        if chosen.classified is not None:
            record.classified, record.label = chosen.classified.outcome, chosen.classified.label or ""
        return record


def trace_of(record: CallRecord) -> RequestTrace:
    """The trace of a call to a model."""
    if record.trace is None:
        raise TypeError("the request is no call to a model")
    return record.trace
