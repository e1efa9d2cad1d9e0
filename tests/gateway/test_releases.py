"""Which release a call is given, and in which version its models answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from airi.errors import ConfigError
from airi.gateway.errors import ApiError
from airi.gateway.gate import Gate, Government
from airi.gateway.governing import decider_of
from airi.gateway.http import CallRecord
from airi.gateway.metrics import Metrics
from airi.gateway.models import ModelRegistry, ServedModel, Versioned
from airi.gateway.releases import Draw, ServedLine, draw_of, served_line
from airi.lifecycle import Registry, ReleaseBook
from airi.lifecycle.draw import Split
from airi.lifecycle.rollouts import Line, Phase, Rollout, SetWeight
from airi.text import Tokenizer
from airi.transport import EngineClient, ModelInfo
from tests.lifecycle.world import MemoryState, version

NAMES = ("plain", "general@g1", "general@g2", "guard@q1", "guard@q2")
MEMBERS = {"r1": {"general": "g1", "guard": "q1"}, "r2": {"general": "g2", "guard": "q2"}}


def line(weight: float = 0.0, name: str = "general", **members: dict[str, str]) -> ServedLine:
    split = Split(stable="r1", candidate="r2", weight=weight, salt="s")
    return ServedLine(name, split, members or MEMBERS)


def release_of(draw: Draw, weight: float = 0.0) -> str:
    return draw.take(line(weight), lambda *_: True).release


@pytest.mark.parametrize(("asked", "drawn"), [("r2", "g2"), ("of-another-line", "g1"), ("", "g1")])
def test_what_is_asked_before_a_call_is_asked_in_its_release(
    model_folder: Path, tokenizer: Tokenizer, asked: str, drawn: str
) -> None:
    models = registry(model_folder, tokenizer)
    gate = Gate(models, Government(decider_of(None, models.primary_names)))
    record = CallRecord(request_id="q", started=0.0, sent=[(b"x-airi-release", asked.encode())])
    before = gate.asked_before(record)
    assert gate.find(before, "general").version == drawn
    assert before.draw is not None
    record.draw = before.draw.copy()
    assert gate.find(record, "guard").version == drawn.replace("g", "q")
    assert len(before.draw.given) == 1


def test_who_asks_for_a_release_has_it_and_who_brings_one_keeps_it() -> None:
    assert release_of(draw_of([(b"x-airi-release", b"r2")], "q")) == "r2"
    assert release_of(draw_of([(b"baggage", b"a=1;p,airi-release=r%32 ;x=1, b=2")], "q")) == "r2"
    assert (
        release_of(draw_of([(b"baggage", b"airi-release=r2"), (b"x-airi-release", b"r1")], "q"), 100) == "r1"
    )
    assert release_of(draw_of([(b"baggage", b"airi-release=of-another-line")], "q")) == "r1"


def test_a_release_that_is_not_served_is_refused_in_one_line() -> None:
    draw = draw_of([(b"x-airi-release", b"r9")], "q")
    with pytest.raises(
        ApiError, match=r"^x-airi-release: 'r9' is no release .*; there are: r1, r2$"
    ) as raised:
        draw.take(line(), lambda *_: True)
    assert raised.value.status == 409
    draw = draw_of([(b"x-airi-release", b"r2")], "q")
    with pytest.raises(ApiError, match=r"there are: r1$"):
        draw.take(line(), lambda _, version: version != "g2")


def test_a_release_that_an_outer_call_has_is_not_exchanged_for_another() -> None:
    gone = line(100)._replace(releases={"r2": MEMBERS["r2"]}, known=frozenset({"r1", "r2"}))
    draw = draw_of([(b"baggage", b"airi-release=r1")], "q")
    with pytest.raises(ApiError, match=r"^baggage: 'r1' is no release .*; there are: r2$"):
        draw.take(gone, lambda *_: True)


def test_while_stable_is_not_there_the_one_before_it_serves_and_never_a_candidate() -> None:
    before = ServedLine("general", Split(stable="r2"), MEMBERS)
    assert Draw("q").take(before, lambda _, version: version in ("g1", "q1")).release == "r1"
    assert Draw("q").take(line(0), lambda _, version: version in ("g2", "q2")).release == "r1"


async def test_what_began_with_a_candidate_that_was_aborted_ends_with_it_while_it_is_there() -> None:
    registry = Registry(MemoryState(), lambda: 0)  # type: ignore[arg-type]
    book = ReleaseBook(registry._store, registry)
    for id in ("r1", "r2"):
        await registry.register(version("general", id))
        await book.make("general", id, {"general": id})
    steps = (SetWeight(weight=5),)
    rollout = Rollout(id="r", stable="r1", candidate="r2", steps=steps, phase=Phase.ABORTED)
    carried = [(b"baggage", b"airi-release=r2")]
    with pytest.raises(ApiError, match=r"^baggage: 'r2' is no release"):  # it never had traffic
        draw_of(carried, "q").take(
            served_line(Line(name="general", stable="r1", rollout=rollout), book), lambda *_: True
        )
    rollout = replace(rollout, step=1)
    line = served_line(Line(name="general", stable="r1", rollout=rollout), book)
    assert draw_of(carried, "q").take(line, lambda *_: True).members == {"general": "r2"}
    for headers in ([], [(b"x-airi-session", b"s")]):
        assert draw_of(headers, "q").take(line, lambda *_: True).release == "r1"
    with pytest.raises(ApiError, match=r"^x-airi-release: 'r2' is no release .*; there are: r1$"):
        draw_of([(b"x-airi-release", b"r2")], "q").take(line, lambda *_: True)
    with pytest.raises(ApiError, match=r"^baggage: 'r2' is no release"):
        draw_of(carried, "q").take(line, lambda _, version: version == "r1")


def test_a_session_moves_to_the_candidate_once_and_never_back() -> None:
    moved = 0
    for session in range(200):
        headers = [(b"x-airi-session", str(session).encode())]
        drawn = [release_of(draw_of(headers, f"request {w}"), w) for w in (0, 5, 25, 50, 75, 100)]
        assert (drawn[0], drawn[-1]) == ("r1", "r2")
        assert drawn == sorted(drawn)
        moved += drawn[3] == "r2"
    assert 60 < moved < 140


def test_without_a_session_each_request_draws() -> None:
    assert {release_of(draw_of([], f"request {i}"), 50) for i in range(50)} == {"r1", "r2"}


@pytest.mark.parametrize("session", [b"", b"x" * 513])
def test_what_is_no_name_of_a_session_is_refused(session: bytes) -> None:
    with pytest.raises(ApiError, match=r"^x-airi-session: has \d+ characters; accepted: 1 to 512$"):
        draw_of([(b"x-airi-session", session)], "q")


def test_a_candidate_that_is_not_there_yet_is_not_drawn() -> None:
    draw = Draw("q")
    assert draw.take(line(100), lambda _, version: version != "q2").release == "r1"


def served(folder: Path, tokenizer: Tokenizer, name: str, version: str) -> ServedModel:
    engine_name = f"{name}@{version}" if version != "1" else name
    return ServedModel(
        info=ModelInfo(name=engine_name, path=str(folder), max_model_len=512, vocab_size=600),
        tokenizer=tokenizer,
        client=cast(EngineClient, SimpleNamespace(models=[SimpleNamespace(name=name) for name in NAMES])),
        metrics=Metrics("1").model(name),
        public_name=name,
        version=version,
    )


def registry(folder: Path, tokenizer: Tokenizer) -> ModelRegistry:
    names = [("plain", "1"), ("general", "g1"), ("general", "g2"), ("guard", "q1"), ("guard", "q2")]
    models = [served(folder, tokenizer, *name) for name in names]
    found = ModelRegistry(
        models,
        [
            Versioned(
                name="general",
                aliases=("chat", "assistant"),
                own_lines=frozenset({"assistant"}),
                place=1,
            ),
            Versioned(name="guard", place=2),
        ],
    )
    guard = ServedLine("guard", Split(stable="q1"), {"q1": {"guard": "q1"}})
    found.serve([line(), line(100, "assistant"), guard])
    return found


def test_names_aliases_and_inner_calls_lead_to_versions(model_folder: Path, tokenizer: Tokenizer) -> None:
    models = registry(model_folder, tokenizer)
    assert models.names == ["plain", "general", "chat", "assistant", "guard"]
    assert [m.engine_name for m in models.models] == ["plain", "general@g1", "guard@q1"]
    assert [m.name for m in models.models] == ["plain", "general", "guard"]

    def engine_names(*names: str) -> list[str]:
        draw = Draw("q")
        found = [models.find(name, draw) for name in names]
        return [model.engine_name for model in found if model is not None]

    assert engine_names("plain") == ["plain"]
    assert engine_names("general", "guard") == ["general@g1", "guard@q1"]
    assert engine_names("chat") == ["general@g1"]
    # Its inner calls keep the release of the line that was asked, whatever lines of their own they have.
    assert engine_names("assistant", "guard", "general") == ["general@g2", "guard@q2", "general@g2"]
    draw = Draw("q")
    assert draw.release_of("general") is None
    models.find("assistant", draw)
    drawn = draw.release_of("guard")
    assert drawn is not None
    assert (drawn.line, drawn.release) == ("assistant", "r2")
    assert draw.release_of("plain") is None
    assert models.find("general@g1", Draw("q")) is None


def test_a_version_that_comes_or_goes_is_given_to_calls_from_then_on(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    models = registry(model_folder, tokenizer)
    drawn = models.find("assistant", Draw("q"))
    assert drawn is not None
    models.remove(drawn)
    again = models.find("assistant", Draw("q"))
    assert again is not None
    assert again.engine_name == "general@g1"
    models.remove(again)
    with pytest.raises(ApiError, match="general@g1 is not loaded at the moment") as raised:
        models.find("general", Draw("q"))
    assert raised.value.status == 503
    models.add(again)
    assert models.find("general", Draw("q")) is again


def test_two_models_of_one_name_are_refused(model_folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="two models are served as 'plain'"):
        ModelRegistry(
            [served(model_folder, tokenizer, "plain", "1")], [Versioned(name="general", aliases=("plain",))]
        )
