"""What became of a request, in lines that a person reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from airi.observability.requests import (
        Amounts,
        ChoiceRecord,
        Failure,
        ModelRecord,
        ReleaseRecord,
        ReplicaRecord,
        RequestRecord,
        RouteRecord,
    )

__all__ = ["lines"]

_FIRST_LINES: Final = 6
_LAST_LINES: Final = 6
"""Of what an engine decided: prompts in many chunks have one for each."""
_DRAWN: Final = {
    "request": "drawn by request",
    "session": "drawn by x-airi-session",
    "baggage": "brought along in baggage",
    "x-airi-release": "asked for by x-airi-release",
    "path": "named in the path",
}

Lines = Iterator[tuple[str, str]]
"""Titles, each with its text."""


def lines(record: RequestRecord) -> Lines:
    """Everything there is to tell, in the order in which it happened."""
    for title, text in _lines(record):
        yield title, "".join(c if c.isprintable() else "?" for c in text)


def _lines(record: RequestRecord) -> Lines:
    ids = [record.id]
    if record.own_id not in ("", record.id):
        ids.append(f"here {record.own_id}")
    if record.answer_id:
        ids.append(f"answer {record.answer_id}")
    yield "request", ", ".join(ids)
    if record.same_id:
        left = record.num_same_id - len(record.same_id)
        more = f" and {left} more" if left > 0 else ""
        yield "", f"{record.num_same_id} others had this id too: {', '.join(record.same_id)}{more}"
    key = f", key {record.key_id}" if record.key_id else ""
    yield "caller", f"{record.tenant}{key}, at {record.at}"
    streamed = ", streamed" if record.stream else ""
    yield "asked", f"{record.path} ({record.dialect}) for {record.asked or 'no model'}{streamed}"
    yield "ended", _end(record)
    if record.route is not None:
        yield "route", _route(record.route)
        for failed in record.route.failed:
            yield "", f"rules[{failed.rule}] counts as false: {failed.error}"
    for i, model in enumerate(record.calls, start=1):
        yield "", ""
        yield f"model {i}" if len(record.calls) > 1 else "model", _model(model)
        yield from _details(model)
    for model in record.inner:
        yield "", ""
        yield f"inner {model.kind}", _model(model)
        yield from _details(model)
    if record.more_inner:
        yield "", f"and {record.more_inner} more"


def _end(record: RequestRecord) -> str:
    if record.running:
        return f"not yet: it runs, since {_ms(record.took_ms)}"
    took = f"after {_ms(record.took_ms)}"
    if record.error is None:
        return f"{record.status} {took}"
    if record.status == 200:
        return f"with an error in the stream {took}: {_failure(record.error)}"
    return f"{_failure(record.error)} {took}"


def _route(route: RouteRecord) -> str:
    if route.kept:
        why = "its session stays with its model"
    elif route.rule is not None:
        why = f"rules[{route.rule}] holds"
    elif route.label:
        why = f"no rule holds, the classifier says {route.label}"
    else:
        asked = f", the classifier says nothing ({route.classified})" if route.classified else ""
        why = f"no rule holds{asked}, its default"
    first, *others = route.models
    then = f", then {', '.join(others)}" if others else ""
    return f"{route.name}: {why} -> {first}{then}"


def _model(model: ModelRecord) -> str:
    name = model.model or model.asked or "the first one"
    version = f"@{model.version}" if model.release is not None else ""
    if model.error is not None:
        return f"{name}{version}: {_failure(model.error)}"
    if model.outcome:
        return f"{name}{version}: {model.outcome}"
    reasons = ", ".join(dict.fromkeys(c.finish_reason for c in model.choices if c.finish_reason))
    return f"{name}{version}: {reasons or 'has not ended'}"


def _details(model: ModelRecord) -> Lines:
    if model.decision is not None:
        verb = "allowed" if model.decision.allowed else "denied"
        by = ", ".join(model.decision.policies)
        errors = ", ".join(model.decision.errors)
        reason = (
            f"policy {errors} could not be evaluated"
            if errors
            else f"by {by}"
            if by
            else "no policy permits it"
        )
        yield "  policy", f"{model.kind} {verb}: {reason}"
    if model.release is not None:
        yield "  release", _release(model.release)
    if model.limits is not None:
        yield "  limits", f"reserved {_amounts(model.limits.reserved)} ({'; '.join(model.limits.scopes)})"
        settled = model.limits.settled
        yield "", "not settled yet" if settled is None else f"settled {_amounts(settled)}"
    for found in model.content:
        yield "  content", f"{found.side}: rule {found.rule} ({found.action}) found {found.count}"
    if model.upstream is not None:
        yield "  upstream", f"circuit {model.upstream.circuit}, {len(model.upstream.attempts)} attempts"
        for attempt in model.upstream.attempts:
            waited = f"; again after {_ms(attempt.waited_ms)}" if attempt.waited_ms else ""
            problem = f": {attempt.problem}" if attempt.problem else ""
            yield "", f"{attempt.outcome}{problem}{waited}"
    if model.choices:
        yield "  tokens", _tokens(model)
        yield "  times", _times(model)
    for choice in model.choices:
        yield from _choice(choice, is_one=len(model.choices) == 1)
    if model.more_choices:
        yield "", f"and {model.more_choices} more answers"


def _release(release: ReleaseRecord) -> str:
    text = f"{release.release} of {release.line}, {_DRAWN.get(release.by, release.by)}"
    if release.rollout:
        text += (
            f"; {release.role} in step {release.step} of {release.steps}, candidate at {release.weight:g} %"
        )
    return text


def _amounts(amounts: Amounts) -> str:
    cost = f", cost {amounts.cost:g}" if amounts.cost else ""
    return f"{amounts.requests} request, {amounts.input_tokens:,} + {amounts.output_tokens:,} tokens{cost}"


def _tokens(model: ModelRecord) -> str:
    device = f", {_ms(model.device_ms)} of devices" if model.device_ms else ""
    priority = f", priority {model.priority} ({model.priority_class})" if model.priority_class else ""
    cached = f" ({model.cached_tokens:,} cached)" if model.cached_tokens else ""
    return f"{model.input_tokens:,} in{cached}, {model.output_tokens:,} out{device}{priority}"


def _times(model: ModelRecord) -> str:
    moments = (
        ("sent", model.sent_ms),
        ("first token", model.first_token_ms),
        ("end", model.ended_ms),
    )
    return ", ".join(f"{name} +{_ms(at)}" for name, at in moments if at is not None) or "never sent"


def _choice(choice: ChoiceRecord, *, is_one: bool) -> Lines:
    title = "" if is_one else f" {choice.number}"
    if choice.replica is not None:
        yield f"  replica{title}", _replica(choice.replica)
        for each in choice.replica.candidates:
            load = f"{each.requests} requests with {each.tokens:,} tokens before it"
            left_out = "; left out, overloaded" if each.overloaded else ""
            predicted = f"first token in {_ms(each.ttft_ms)}, others wait {_ms(each.delay_ms)}"
            yield "", f"{each.replica}: {predicted}, {each.cached_tokens:,} tokens cached, {load}{left_out}"
    told = choice.engine
    if len(told) > _FIRST_LINES + _LAST_LINES:
        left = len(told) - _FIRST_LINES - _LAST_LINES
        told = [*told[:_FIRST_LINES], f"... {left} lines more: --json", *told[-_LAST_LINES:]]
    for i, line in enumerate(told):
        yield f"  engine{title}" if i == 0 else "", line


def _replica(replica: ReplicaRecord) -> str:
    lost = f"; {', '.join(replica.lost)} went before it had answered" if replica.lost else ""
    return f"{replica.replica}, decided in {replica.took_us:g} us{lost}"


def _failure(failure: Failure) -> str:
    if failure.code == "client_gone":
        return "the client hung up"
    text = f"{failure.status} {failure.code}"
    if failure.message:
        return f"{text}: {failure.message}"
    return f"{text} ({failure.field})" if failure.field else text


def _ms(ms: float) -> str:
    return f"{ms / 1e3:.2f} s" if ms >= 1e4 else f"{ms:.1f} ms"
