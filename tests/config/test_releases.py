"""Versions, releases and rollouts of a config: what they come to, and one line for each mistake."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from airi.config.bring_up import bring_up, now_ms
from airi.config.lock import Locked, lock_path, locked_versions, pinned_sources, resolve, write_lock
from airi.config.options import engine_options
from airi.config.rollouts import first_stable, gates_of, plan_of, releases_of, steps_of
from airi.errors import ConfigError, ConfigFileError, VersionError
from airi.lifecycle import Registry, VersionState
from airi.lifecycle.gates import Bound, Gate, Metric
from airi.lifecycle.lines import Lines
from airi.lifecycle.machine import Command
from airi.lifecycle.operators import Operator
from airi.lifecycle.rollouts import Analysis, OnFailure, Pause, SetWeight, Shadow
from airi.state import open_store

from .conftest import config, lines, write

MODELS = """\
version: 1
models:
  - name: general
    aliases: [assistant]
    versions: [{id: g1, source: ./g1}, {id: g2, source: ./g2}]
  - name: domain
    versions:
      - {id: d4, source: ./d4, compatible_with: {general: [g1]}, dimensions: 8}
      - {id: d5, source: ./d5, compatible_with: {general: [g2]}}
  - {name: plain, source: ./plain}
"""
RELEASES = """\
releases:
  assistant:
    "2026.11": {general: g1, domain: d4}
    "2026.12": {general: g2, domain: d5}
"""
ROLLOUT = """\
rollouts:
  assistant:
    candidate: "2026.12"
    steps:
      - shadow: {percent: 10, method: score, duration: 30m}
      - set_weight: 5
      - pause: {duration: 15m}
      - analysis: [latency, tokens]
      - pause: {}
    on_failure: hold
    gates:
      latency: {metric: ttft_ms.p99.5, vs: stable, max_regression: 10%, min_samples: 500}
      tokens:
        - {metric: token.nll_delta, vs: stable, max: 0.05}
        - {metric: output.finish_length_rate, vs: stable, max_regression: 2pp}
"""


def test_a_model_with_several_versions_has_one_release_per_version() -> None:
    found = config(MODELS + RELEASES).config
    assert releases_of(found) == {
        "assistant": {
            "2026.11": {"general": "g1", "domain": "d4"},
            "2026.12": {"general": "g2", "domain": "d5"},
        },
        "general": {"g1": {"general": "g1"}, "g2": {"general": "g2"}},
        "domain": {"d4": {"domain": "d4"}, "d5": {"domain": "d5"}},
    }
    assert first_stable(found, "assistant") == "2026.11"
    stable = config(MODELS + "rollouts: {general: {stable: g2, steps: [{pause: {}}]}}").config
    assert first_stable(stable, "general") == "g2"
    one = config("version: 1\nmodels: [{name: a, versions: [{id: v1, source: b}]}]").config
    assert releases_of(one) == {}


def test_a_rollout_is_what_its_document_will_be() -> None:
    found = config(MODELS + RELEASES + ROLLOUT).config
    rollout = found.rollouts["assistant"]
    assert steps_of(rollout) == (
        Shadow(percent=10, duration_s=1800),
        SetWeight(weight=5),
        Pause(duration_s=900),
        Analysis(gates=("latency", "tokens")),
        Pause(),
    )
    latency = Gate(metric=Metric.TTFT, bound=Bound.REGRESSION, value=0.1, quantile=0.995, min_samples=500)
    delta = Gate(metric=Metric.NLL_DELTA, bound=Bound.MAX, value=0.05)
    auto = Gate(metric=Metric.NLL_DELTA, bound=Bound.MAX, value=0.0, is_auto=True)
    with_auto = config(MODELS + RELEASES + ROLLOUT.replace("max: 0.05", "max: auto"))
    assert gates_of(with_auto.config.rollouts["assistant"])["tokens"][0] == auto
    length = Gate(metric=Metric.LENGTH, bound=Bound.REGRESSION_POINTS, value=0.02)
    assert gates_of(rollout) == {"latency": (latency,), "tokens": (delta, length)}
    assert plan_of(found, "assistant").on_failure is OnFailure.HOLD
    with pytest.raises(ConfigError, match=r"line is 'general', of which .* they do of: assistant"):
        plan_of(found, "general")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            '12": {general: g2',
            '12": {general: g9',
            "'2026.12'.general is 'g9'; accepted: a version of general: g1, g2",
        ),
        ('12": {general: g2, ', '12": {', "'2026.12' is without it; accepted: a version of general, which"),
        (
            "domain: d5}",
            "domain: d4}",
            "is given; accepted: members that fit together (domain@d4 was made for general g1",
        ),
        ("domain: d5}", "plain: p1}", "plain is given; accepted: models with versions: general, domain"),
        (
            " assistant:",
            " other:",
            "releases.other is given; accepted: the name or an alias of a model: general",
        ),
        ('te: "2026.12"', 'te: "2026.11"', "is '2026.11'; accepted: another release than stable: 2026.12"),
        (
            'te: "2026.12"',
            'te: "2027"',
            "candidate is '2027'; accepted: a release of assistant: 2026.11, 2026.12",
        ),
        ("[latency, tokens]", "[latency, x]", "analysis[1] is 'x'; accepted: one of gates: latency, tokens"),
        (
            "- set_weight: 5",
            "- {set_weight: 5, pause: {}}",
            "steps[1] is set_weight and pause; accepted: one of shadow",
        ),
        ("set_weight: 5", "set_weight: 101", "steps[1].set_weight is 101; accepted: percent, from 0 to 100"),
        (
            "max: 0.05",
            "max: automatic",
            "max is 'automatic'; accepted: a number, or auto",
        ),
        (
            "max: 0.05",
            "min: auto",
            "min is 'auto'; accepted: a number: auto is for max of token.nll_delta and min of token.top1_agreement",
        ),
        (
            "max: 0.05",
            "min: 0.05",
            "is 0.05; accepted: max or max_regression, as less of token.nll_delta is bett",
        ),
        ("max: 0.05", "max_regression: 10%", "accepted: max or min: token.nll_delta is measured from stable"),
        (
            "- shadow:",
            "- pause: {}\n      # ",
            "analysis[1] is 'tokens'; accepted: gates on what is scored behind",
        ),
        ("max: 0.05", "max: 0.05, min: 0", "is max and min; accepted: one of max, min and max_regression"),
        (
            "max_regression: 10%",
            "max_regression: 2pp",
            "a percentage such as 10%: percentage points are of shares",
        ),
        (
            "max_regression: 10%",
            "max_regression: much",
            "how much worse, such as 10% of stable's figure, or 2pp",
        ),
        ("ttft_ms.p99.5", "ttft_ms", "gates.latency.metric is 'ttft_ms'; accepted: one of: ttft_ms.p95"),
        (
            "candidate:",
            "simulate: {}\n    candidate:",
            "simulate is given; this version of AIRI does not have simu",
        ),
        (
            "{general: [g1]}",
            "{general: [g7]}",
            "compatible_with.general[0] is 'g7'; accepted: a version of general",
        ),
        ("id: g2,", "id: 'a@b',", "versions[1].id is 'a@b'; accepted: an id without @ and /"),
        (
            "rollouts:\n  assistant:",
            "rollouts:\n  plain:",
            "rollouts.plain is given; accepted: what has releases: as",
        ),
    ],
)
def test_each_mistake_is_one_line(old: str, new: str, line: str) -> None:
    text = MODELS + RELEASES + ROLLOUT
    assert old in text
    assert line in lines(text.replace(old, new, 1))[0]


def folders(tmp_path: Path) -> None:
    for name in ("g1", "g2", "d4", "d5", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_text(name)


def test_a_lock_has_every_version_that_comes_and_goes(tmp_path: Path) -> None:
    folders(tmp_path)
    file = write(tmp_path, MODELS)
    assert locked_versions(file).keys() == {"general@g1", "general@g2", "domain@d4", "domain@d5"}
    write_lock(file, resolve(file))
    held = json.loads(lock_path(file).read_text())["models"]
    assert sorted(held) == ["domain@d4", "domain@d5", "general@g1", "general@g2", "plain"]
    assert pinned_sources(file)["general@g2"] == str(tmp_path / "g2")
    (tmp_path / "g2" / "w").write_text("other")
    with pytest.raises(
        ConfigFileError, match=r"models\[0\].versions\[1\].source is './g2'; accepted: the files"
    ):
        pinned_sources(file)


def test_an_engine_begins_with_the_versions_that_are_needed(tmp_path: Path) -> None:
    folders(tmp_path)
    file = write(tmp_path, MODELS)
    names = [model.name for model in engine_options(file).models]
    assert names == ["general@g1", "domain@d4", "plain"]
    given = engine_options(file, versions={"general": ("g2", "g1"), "domain": ("d5",)}).models
    assert [model.name for model in given] == ["general@g2", "general@g1", "domain@d5", "plain"]
    # Memory must move for others to come.
    assert [model.is_elastic for model in given] == [True, True, True, False]


async def test_a_config_is_brought_up_once_and_whatever_has_become_of_it_since(tmp_path: Path) -> None:
    folders(tmp_path)
    file = write(tmp_path, MODELS + RELEASES + ROLLOUT)
    locked = locked_versions(file)
    async with await open_store(f"sqlite:///{tmp_path}/airi.db") as store:
        both = [bring_up(file, locked, store) for _ in range(2)]
        assert await asyncio.gather(*both) == [{"general": ("g1",), "domain": ("d4",)}] * 2
        operator = Operator(store, now_ms)
        plan = plan_of(file.config, "assistant")
        await operator.start("assistant", plan, candidate=None, who="me")
        # The candidate was never loaded: stable must be served whether it can be or not.
        assert await bring_up(file, locked, store) == {"general": ("g1",), "domain": ("d4",)}
        registry = Registry(store, now_ms)
        await registry.refresh()
        for name, id in (("general", "g2"), ("domain", "d5")):
            loading = await registry.move(registry.find(name, id), VersionState.LOADING)
            # One that may have ended the process that loaded it is no part of a start.
            assert await bring_up(file, locked, store) == {"general": ("g1",), "domain": ("d4",)}
            await registry.move(loading, VersionState.READY)
        assert await bring_up(file, locked, store) == {"general": ("g1", "g2"), "domain": ("d4", "d5")}
        await operator.say("assistant", Command.ABORT, who="me")
        assert await bring_up(file, locked, store) == {"general": ("g1",), "domain": ("d4",)}
        other = locked | {"general@g2": Locked(source="./g2", sha256="0")}
        with pytest.raises(VersionError, match=r"general@g2 is sha256:.*other content needs another id"):
            await bring_up(file, other, store)
        without = write(tmp_path, MODELS.replace("{id: g1,", "{id: g0,").replace("[g1]", "[g2]"))
        with pytest.raises(ConfigFileError, match=r"general is served with release g1"):
            await bring_up(without, locked_versions(without), store)
        # Lines of configs of the past are no lines.
        lines = Lines(store, only=releases_of(without.config))
        await lines.refresh()
        assert [line.name for line in lines.all] == ["domain", "general"]


COLLECTION = """\
version: 1
models:
  - {name: chat, aliases: [assistant], versions: [{id: c1, source: ./c1}]}
  - {name: minilm, aliases: [small], task: embed, versions: [{id: e1, source: ./e1}, {id: e2, source: ./e2}]}
collections: [{name: kb, embedder: small}]
releases:
  assistant:
    one: {chat: c1, minilm: e1, kb: "space:e1"}
    two: MEMBERS
"""


def test_a_release_may_say_the_space_of_a_collection() -> None:
    found = config(COLLECTION.replace("MEMBERS", '{chat: c1, minilm: e2, kb: "space:e2"}')).config
    assert releases_of(found)["assistant"] == {
        "one": {"chat": "c1", "minilm": "e1"},
        "two": {"chat": "c1", "minilm": "e2"},
    }


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (
            '{chat: c1, minilm: e2, kb: "space:e1"}',
            "kb is 'space:e1'; accepted: space:e2, by the release's version of minilm",
        ),
        (
            '{chat: c1, kb: "space:e1"}',
            "kb is given; accepted: with a version of minilm, its embedder, beside it",
        ),
        ('{chat: c1, docs: "space:e1"}', "docs is given; accepted: collections: kb"),
    ],
)
def test_a_space_that_is_not_its_embedders_is_refused(members: str, told: str) -> None:
    assert lines(COLLECTION.replace("MEMBERS", members)) == [f"9: releases.assistant.two.{told}"]
