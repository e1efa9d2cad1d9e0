"""Who gets a candidate that has no traffic yet, what policies see of releases, and what counts for gates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from airi.gateway.errors import ApiError
from airi.gateway.gate import Gate, Government, call_context
from airi.gateway.governing import decider_of
from airi.gateway.http import CallRecord
from airi.gateway.models import ServedModel
from airi.gateway.observing import Observing
from airi.gateway.releases import Draw, Drawn, ServedLine, draw_of
from airi.gateway.rollouts import Rollouts
from airi.gateway.scoring import Scorer
from airi.gateway.watching import Watching
from airi.lifecycle.draw import Split
from airi.lifecycle.rollouts import Line, Phase, Rollout
from airi.policy import Principal
from airi.policy.decisions import Action
from airi.text import Tokenizer
from tests.lifecycle.world import MemoryState

from .test_releases import line, registry

CHAT = 'permit (principal, action == Action::"chat", resource);'
TESTERS = CHAT + 'permit (principal in Group::"testers", action == Action::"preview", resource);'
ACME = Principal(tenant="acme", number=1)
TESTER = Principal(tenant="qa", number=2, groups=("testers",))
ASKS = {"x-airi-release": "r2"}


def drawn_by(weight: float, **headers: str) -> Drawn:
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return draw_of(sent, "q").take(line(weight), lambda *_: True)


class Served:
    """A gate before the line `general`, whose candidate has this weight."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, policies: str | None, weight: float = 0.0) -> None:
        self.models = registry(folder, tokenizer)
        guard = ServedLine("guard", Split(stable="q1"), {"q1": {"guard": "q1"}})
        self.models.serve([line(weight), guard])
        self.gate = Gate(self.models, Government(decider_of(policies, self.models.primary_names)))

    def record(self, principal: Principal = ACME, **headers: str) -> CallRecord:
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        return CallRecord(request_id="proxy", started=0.0, principal=principal, sent=sent)

    def permits(self, record: CallRecord) -> bool:
        return self.gate.permits(record, Action.CHAT, "general", lambda _: call_context(record, max_tokens=1))

    def admit(self, principal: Principal = ACME, **headers: str) -> ServedModel:
        record = self.record(principal, **headers)
        return self.gate.admit(record, Action.CHAT, "general", lambda _: call_context(record, max_tokens=1))


def test_a_candidate_without_traffic_is_had_by_who_may_preview_alone(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    served = Served(model_folder, tokenizer, TESTERS)
    assert served.admit().version == "g1"
    for headers in (ASKS, {"baggage": "airi-release=r2"}):
        assert served.admit(TESTER, **headers).version == "g2"
        with pytest.raises(ApiError) as raised:
            served.admit(ACME, **headers)
        assert raised.value.status == 403
        assert raised.value.message.endswith(" asks for r2, which gets no traffic yet")
    assert served.admit(ACME, **{"x-airi-release": "r1"}).version == "g1"
    assert Served(model_folder, tokenizer, TESTERS, weight=1).admit(ACME, **ASKS).version == "g2"
    with pytest.raises(ApiError, match="denied"):  # without policies operators may, and nobody else
        Served(model_folder, tokenizer, None).admit(ACME, **ASKS)


def test_policies_see_the_release_and_whether_it_was_asked_for(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    forbid = 'forbid (principal, action, resource) when { context has release && context.release == "r2" };'
    served = Served(model_folder, tokenizer, CHAT + forbid, weight=100)
    with pytest.raises(ApiError, match="denied"):
        served.admit()
    assert served.admit(ACME, **{"x-airi-release": "r1"}).version == "g1"
    asked = 'forbid (principal, action == Action::"chat", resource) when { context.release_asked };'
    served = Served(model_folder, tokenizer, CHAT + asked, weight=100)
    assert served.admit().version == "g2"
    with pytest.raises(ApiError, match="denied"):
        served.admit(ACME, **ASKS)


def test_whatever_is_decided_is_told_the_release(model_folder: Path, tokenizer: Tokenizer) -> None:
    """Lists, version paths, routes' sessions and shadows, as calls themselves."""
    only = 'permit (principal, action, resource) when { context has release && context.release == "r2" };'
    for weight, may in ((100, True), (0.0, False)):
        served = Served(model_folder, tokenizer, only, weight=weight)
        record = served.record()
        assert ("general" in served.gate.usable(record)) == may
        assert served.permits(record) == may
        model = served.models.find("general")
        assert model is not None
        record.draw = record.new_draw()
        served.models.find("general", record.draw)
        assert served.gate._admits_shadow(record, model) == may
        assert record.draw.release_of("general") is not None


def test_the_ids_that_requests_bring_draw_nothing(model_folder: Path, tokenizer: Tokenizer) -> None:
    served = Served(model_folder, tokenizer, CHAT, weight=50)
    assert {served.admit().version for _ in range(60)} == {"g1", "g2"}
    record = served.record()
    assert len({record.new_draw().key for _ in range(2)} | {record.inner().new_draw().key}) == 1


def test_versions_are_told_to_nobody_who_may_not_use_the_model(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    policies = CHAT + 'forbid (principal, action, resource == Model::"general");'
    gate = Served(model_folder, tokenizer, policies).gate
    for name, version in (("general", "g1"), ("general", "g9"), ("chat", "g1")):
        with pytest.raises(ApiError) as raised:
            gate.pin(CallRecord(request_id="q", started=0.0, principal=ACME), name, version)
        assert (raised.value.status, raised.value.error_code) == (403, "permission_denied")
        assert "g1" not in raised.value.message


@pytest.mark.parametrize(
    ("headers", "counts"),
    [
        ({}, True),
        ({"x_airi_session": "s"}, True),
        ({"x_airi_release": "r2"}, False),
        ({"x_airi_release": "r1"}, False),
        ({"baggage": "airi-release=r2"}, False),
    ],
)
def test_calls_that_chose_their_release_count_for_no_gate(headers: dict[str, str], *, counts: bool) -> None:
    drawn = drawn_by(50.0, **headers)
    rollout = Rollout(id="r", stable="r1", candidate="r2", steps=(), phase=Phase.RUNNING)
    members = SimpleNamespace(members=drawn.members)
    fake: Any = SimpleNamespace(
        lines={"general": Line(name="general", stable="r1", rollout=rollout)},
        releases=SimpleNamespace(find=lambda *_: members),
        _models=SimpleNamespace(version=lambda *_: None),
    )
    record = CallRecord(request_id="q", started=0.0, draw=Draw("q", given=[drawn]))
    model = cast(ServedModel, SimpleNamespace(name="general"))
    trial = Rollouts._trial_of(fake, record, model)
    assert trial is not None
    assert trial.counts == counts
    observing = Observing(MemoryState())
    sight = Watching(observing, Scorer(), lambda *_: trial).sight(record, model, lambda: True)
    assert sight is not None
    sight.ended()
    seen = observing.of(rollout, drawn.release)
    assert (seen.requests, seen.chosen) == (counts, not counts)
