"""What is noted of one model that is asked: for a request, or for a question within it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from airi.gateway.errors import ForeignError, api_error_from, without_text
from airi.gateway.http import CLIENT_GONE_STATUS, ClientGone
from airi.gateway.metrics import now
from airi.gateway.told import choice_records, content_records, limits_record, release_record, upstream_record
from airi.gateway.upstreams.generation import UpstreamGeneration
from airi.observability.requests import DecisionRecord, Failure, ModelRecord
from airi.upstreams.errors import UpstreamRefusal

if TYPE_CHECKING:
    from types import TracebackType

    from airi.gateway.generation import Generation
    from airi.gateway.http import CallRecord
    from airi.gateway.limits import Held
    from airi.gateway.models import ServedModel
    from airi.gateway.releases import Draw
    from airi.policy.decisions import Decision

__all__ = ["LONGEST_MESSAGE", "LONGEST_NAME", "ModelTrace", "failure_of", "noting_failure"]

log = logging.getLogger("airi.gateway")

LONGEST_NAME: Final = 200
LONGEST_MESSAGE: Final = 500
_MOST_CHOICES: Final = 8
_OURS: Final = frozenset({"too_costly", "content_filter", "context_length_exceeded"})
"""Codes of a 400 whose message has nothing of the request's own words."""


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
            self._error = failure_of(error)
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
            self._error, self._ended = failure_of(error), now()

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
            asked=self._hide(self.asked or "")[:LONGEST_NAME],
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


@contextmanager
def noting_failure(record: CallRecord) -> Iterator[None]:
    """Notes what ends a call within another one, which goes on without it."""
    try:
        yield
    except Exception as error:
        if record.call is not None:
            record.call.fail(error)
        raise


def failure_of(error: BaseException) -> Failure:
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
        code=code[:LONGEST_NAME],
        field=(known.param or "")[:LONGEST_NAME],
        message=known.message[:LONGEST_MESSAGE] if is_ours else "",
    )
