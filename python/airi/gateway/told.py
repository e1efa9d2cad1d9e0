"""What calls are decided and counted by, as records that are told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from airi.observability.requests import (
    Amounts,
    CandidateRecord,
    ChoiceRecord,
    ContentRecord,
    LimitsRecord,
    ReleaseRecord,
    ReplicaRecord,
    UpstreamAttempt,
    UpstreamRecord,
)
from airi.policy.ledger.limits import MICRO
from airi.routing import ReplicaSet

if TYPE_CHECKING:
    from airi.gateway.choice import Choice
    from airi.gateway.content import CallContent
    from airi.gateway.limits import Held
    from airi.gateway.releases import Drawn
    from airi.gateway.upstreams.generation import UpstreamGeneration
    from airi.gateway.watching import Sight
    from airi.policy.ledger import Demand
    from airi.routing import Decision
    from airi.transport import EngineHandle

__all__ = ["choice_records", "content_records", "limits_record", "release_record", "upstream_record"]

_MOST_CANDIDATES: Final = 8
_MOST_CONTENT: Final = 32


_name_of = lru_cache(maxsize=1024)(str)


def limits_record(held: Sequence[Held]) -> LimitsRecord:
    """What a call held, as a request and of tokens, of the same limits."""
    used = [each.used for each in held if each.used is not None]
    return LimitsRecord(
        scopes=[_name_of(scope) for scope in held[0].reservation.scopes],
        reserved=_amounts([each.reservation.demand for each in held]),
        settled=_amounts(used) if len(used) == len(held) else None,
    )


def _amounts(demands: Sequence[Demand]) -> Amounts:
    amounts, cost_micro = Amounts(), 0
    for each in demands:
        amounts.requests += each.requests
        amounts.input_tokens += each.input_tokens
        amounts.output_tokens += each.output_tokens
        cost_micro += each.cost_micro
    amounts.cost = cost_micro / MICRO
    return amounts


def content_records(content: CallContent) -> list[ContentRecord]:
    """What content rules found in the texts of a call: how often, never what."""
    return [
        ContentRecord(side=side, rule=rule, action=action, count=count)
        for (side, rule, action), count in list(content.hits.items())[:_MOST_CONTENT]
    ]


def release_record(drawn: Drawn, sight: Sight | None) -> ReleaseRecord:
    """The release that a call was given; `sight`: where its line was in a rollout."""
    record = ReleaseRecord(line=drawn.line, release=drawn.release, by=drawn.by)
    if sight is not None:
        rollout = sight.trial.rollout
        record.rollout = rollout.id
        record.role = "candidate" if drawn.release == rollout.candidate else "stable"
        record.step, record.steps = min(rollout.step + 1, len(rollout.steps)), len(rollout.steps)
        record.weight = rollout.weight
    return record


def upstream_record(generation: UpstreamGeneration) -> UpstreamRecord | None:
    """How the server answered that runs a call's model; None before it was asked."""
    if generation.circuit is None:
        return None
    attempts = [
        UpstreamAttempt(outcome=each.outcome, problem=each.problem, waited_ms=round(each.waited_s * 1e3, 1))
        for each in generation.attempts
    ]
    return UpstreamRecord(attempts=attempts, circuit=str(generation.circuit))


def choice_records(choices: Sequence[Choice], client: EngineHandle) -> list[ChoiceRecord]:
    """Answers that `client` was asked for, and where each was made."""
    records = [
        ChoiceRecord(
            number=choice.request_id,
            finish_reason=choice.finish_reason or "",
            input_tokens=choice.prompt_tokens,
            cached_tokens=choice.cached_tokens,
            output_tokens=choice.completion_tokens,
        )
        for choice in choices
    ]
    if isinstance(client, ReplicaSet):
        for record in records:
            decision = client.decision(record.number)
            record.replica = None if decision is None else _replica(decision)
    return records


def _replica(decision: Decision) -> ReplicaRecord:
    best = sorted(decision.choice.candidates, key=lambda each: (each.is_overloaded, each.score_us))
    return ReplicaRecord(
        replica=decision.replica,
        took_us=round(decision.took_s * 1e6, 1),
        lost=list(decision.lost),
        candidates=[
            CandidateRecord(
                replica=decision.names.get(each.replica, "?"),
                ttft_ms=round(each.ttft_us / 1e3, 3),
                delay_ms=round(each.delay_us / 1e3, 3),
                cached_tokens=each.cached_tokens,
                requests=each.outstanding_requests,
                tokens=each.outstanding_tokens,
                overloaded=each.is_overloaded,
            )
            for each in best[:_MOST_CANDIDATES]
        ],
    )
