"""What a call to a model notes of what happens to it, so that it can be told later what it was and why.

What decides and counts is noted as it is: a reference each. Words are made of it once the call has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from airi.gateway.errors import ApiError, ForeignError, api_error_from, without_text
from airi.gateway.http import CLIENT_GONE_STATUS, ClientGone
from airi.gateway.metrics import now
from airi.gateway.told import choice_records, content_records, limits_record, release_record, upstream_record
from airi.gateway.upstreams.generation import UpstreamGeneration
from airi.observability.requests import (
    DecisionRecord,
    FailedRule,
    Failure,
    ModelRecord,
    Recent,
    RequestRecord,
    RouteRecord,
)
from airi.policy.decisions import Action
from airi.upstreams.errors import UpstreamRefusal

if TYPE_CHECKING:
    from types import TracebackType

    from airi.gateway.generation import Generation
    from airi.gateway.http import CallRecord
    from airi.gateway.limits import Held
    from airi.gateway.models import ServedModel
    from airi.gateway.releases import Draw
    from airi.gateway.routes import Chosen
    from airi.policy.decisions import Decision

__all__ = ["ModelTrace", "RequestTrace", "Traces", "noting_failure", "trace_of"]

log = logging.getLogger("airi.gateway")

_MOST_INNER: Final = 32
_MOST_CHOICES: Final = 8
_LONGEST_NAME: Final = 200
_LONGEST_MESSAGE: Final = 500
_INNER: Final = frozenset({Action.CLASSIFY, Action.JUDGE, Action.SHADOW})
_OURS: Final = frozenset({"too_costly", "content_filter", "context_length_exceeded"})
"""Codes of a 400 whose message has nothing of the request's own words."""


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
        if action in _INNER:
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
        self._error = _failure(error)
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
            asked=hide(self.asked or "")[:_LONGEST_NAME],
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
        failed = [FailedRule(rule=rule, error=error[:_LONGEST_MESSAGE]) for rule, error in chosen.failed]
        record = RouteRecord(
            name=name, rule=chosen.rule, models=chosen.models, failed=failed, kept=chosen.kept is not None
        )
        if chosen.classified is not None:
            record.classified, record.label = chosen.classified.outcome, chosen.classified.label or ""
        return record


class ModelTrace:
    """What is noted of one model that is asked. As a block: the time in which it is asked for the request itself."""

    __slots__ = (
        "_began",
        "_ended",
        "_error",
        "_hide",
        "_outcome",
        "_record",
        "_told",
        "asked",
        "context",
        "decision",
        "draw",
        "generation",
        "held",
        "kind",
        "model",
    )

    def __init__(self, record: CallRecord, kind: str, asked: str | None, hide: Callable[[str], str]) -> None:
        self._record, self.kind, self.asked, self._hide = record, kind, asked, hide
        self._began = now()
        self._ended: float | None = None
        self._error: Failure | None = None
        self._outcome = ""
        self._told: ModelRecord | None = None
        self.context: Mapping[str, Any] | None = None
        """What policies could ask of the call."""
        self.decision: Decision | None = None
        self.model: ServedModel | None = None
        self.draw: Draw | None = None
        self.held: list[Held] = []
        self.generation: Generation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._error = _failure(error)
        self._ended = now()
        self.settle()

    def reserved(self, generation: Generation, held: Held | None) -> None:
        """It holds what it may use."""
        self.generation = generation
        if held is not None:
            self.held.append(held)

    def fail(self, error: Exception) -> None:
        """An error ended it, of which an answer that has begun tells, or nobody."""
        if self._ended is None:
            self._error, self._ended = _failure(error), now()

    def end(self, outcome: str) -> None:
        """What came of it."""
        self._ended, self._outcome, self._told = now(), outcome, None

    def settle(self) -> None:
        """Nothing more becomes of what is noted, so that words do for it: texts need be held no longer."""
        if self._told is not None:
            return
        try:
            self._told = self._words()
        except Exception as error:  # what happened to the call itself is over
            name, shown = type(error).__name__, without_text(error)
            log.error("request %s: a call cannot be told: %s", self._record.request_id, name, exc_info=shown)
            self._told = ModelRecord(kind=self.kind, asked="", error=self._error)
        self.generation, self.draw = None, None
        self.held.clear()

    def told(self) -> ModelRecord:
        """What there is to tell now."""
        return self._told or self._words()

    def _words(self) -> ModelRecord:
        model, decision, context = self.model, self.decision, self.context or {}
        record = ModelRecord(
            kind=self.kind,
            asked=self._hide(self.asked or "")[:_LONGEST_NAME],
            model="" if model is None else model.name,
            version="" if model is None else model.version,
            priority=context.get("priority", 0),
            priority_class=context.get("priority_class", ""),
            limits=limits_record(self.held) if self.held else None,
            began_ms=self._since(self._began),
            ended_ms=None if self._ended is None else self._since(self._ended),
            outcome=self._outcome,
            error=self._error,
        )
        if decision is not None:
            record.decision = DecisionRecord(
                allowed=decision.allowed, policies=decision.policies, errors=decision.errors
            )
        if self.generation is not None:
            self._add_generation(record, self.generation)
        if model is not None and self.draw is not None:
            drawn = self.draw.release_of(model.name)
            sight = None if self.generation is None else self.generation.sight
            record.release = None if drawn is None else release_record(drawn, sight)
        return record

    def _add_generation(self, record: ModelRecord, generation: Generation) -> None:
        choices, sent_at, first = generation.choices, generation.sent_at, None
        for choice in choices:
            at = choice.first_token_at
            if at is not None and (first is None or at < first):
                first = at
        for choice in choices if len(choices) == 1 else generation.first_choices():
            record.input_tokens += choice.prompt_tokens
            record.cached_tokens += choice.cached_tokens
        record.output_tokens = generation.num_generated
        record.device_ms = round(generation.device_us / 1e3, 3)
        record.choices = choice_records(choices[:_MOST_CHOICES], generation.model.client)
        record.more_choices = max(0, len(choices) - _MOST_CHOICES)
        if isinstance(generation, UpstreamGeneration):
            record.upstream = upstream_record(generation)
        if generation.content is not None:
            record.content = content_records(generation.content)
        if sent_at is not None:
            record.sent_ms = self._since(sent_at)
        if first is not None:
            record.first_token_ms = self._since(first)
        if record.ended_ms is None and generation.ended_at is not None:
            record.ended_ms = self._since(generation.ended_at)

    def _since(self, at: float) -> float:
        return round((at - self._record.started) * 1e3, 3)


def trace_of(record: CallRecord) -> RequestTrace:
    """The trace of a call to a model."""
    if record.trace is None:
        raise TypeError("the request is no call to a model")
    return record.trace


@contextmanager
def noting_failure(record: CallRecord) -> Iterator[None]:
    """Notes what ends a call within another one, which goes on without it."""
    try:
        yield
    except Exception as error:
        if record.call is not None:
            record.call.fail(error)
        raise


def _failure(error: BaseException) -> Failure:
    """An error without what it may quote of the request."""
    if isinstance(error, ClientGone):
        return Failure(status=CLIENT_GONE_STATUS, code="client_gone")
    if isinstance(error, TimeoutError):
        return Failure(status=504, code="timeout")
    known = api_error_from(error) if isinstance(error, Exception) else None
    if known is None:
        return Failure(status=500, code="internal_error", message=type(error).__name__)
    if isinstance(known, ForeignError):
        return Failure(status=known.status, code=UpstreamRefusal.code)
    code = known.error_code or known.type
    is_ours = known.status in (403, 429) or known.status >= 500 or code in _OURS
    return Failure(
        status=known.status,
        code=code[:_LONGEST_NAME],
        field=(known.param or "")[:_LONGEST_NAME],
        message=known.message[:_LONGEST_MESSAGE] if is_ours else "",
    )
