"""A config that changes while it is served: whole, or not at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.config import ConfigFile
from airi.config.cedar import check_policies
from airi.config.options import engine_options, server_options
from airi.config.reload import Outcome, Prepared, Reloader, apply, diff
from airi.errors import ConfigError

from .conftest import config, with_demo, write

BASE = """\
version: 1
server: {port: 8001}
models:
  - {name: a, source: x, price: {input_per_1m: 1}}
  - {name: b, source: y}
tenants:
  - {name: acme, weight: 2, groups: [gold], limits: {rpm_limit: 5}}
  - {name: lab}
policies:
  text: permit (principal, action, resource);
"""


def changed(old: str, new: str) -> tuple[tuple[str, ...], list[str]]:
    """Changes, and refusals with their lines."""
    assert BASE.count(old) == 1
    found = diff(config(BASE), config(BASE.replace(old, new)))
    return found.changes, [
        str(refusal).removeprefix("airi.yaml:").partition(";")[0] for refusal in found.refusals
    ]


def test_the_same_config_has_no_difference() -> None:
    found = diff(config(BASE), config(BASE + "# a comment\n"))
    assert (found.changes, found.refusals) == ((), ())


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("weight: 2", "weight: 3", ["tenants.acme.weight"]),
        ("groups: [gold], ", "", ["tenants.acme.groups"]),
        ("rpm_limit: 5", "tpm_limit: 5", ["tenants.acme.limits.rpm_limit", "tenants.acme.limits.tpm_limit"]),
        ("input_per_1m: 1", "input_per_1m: 2", ["models.a.price.input_per_1m"]),
        ("permit", "forbid", ["policies.text"]),
        (
            "policies:\n  text: permit (principal, action, resource);\n",
            "",
            ["policies.engine", "policies.text"],
        ),
    ],
)
def test_what_can_change_is_named(old: str, new: str, changes: list[str]) -> None:
    assert changed(old, new) == (tuple(changes), [])


def test_tenants_and_rules_come_and_go() -> None:
    added = changed("- {name: lab}", "- {name: lab}\n  - {name: new, limits: {models: {a: {rpm_limit: 1}}}}")
    assert "tenants.new.name" in added[0]
    assert "tenants.new.limits.models.a.rpm_limit" in added[0]
    assert added[1] == []
    assert "tenants.lab.name" in changed("  - {name: lab}\n", "")[0]
    rules = changed("policies:", "content: {input: [{name: w, words: [owl]}]}\npolicies:")
    assert "content.input.w.words" in rules[0]


def test_tenants_may_change_places() -> None:
    moved = BASE.replace("  - {name: lab}\n", "").replace("tenants:\n", "tenants:\n  - {name: lab}\n")
    found = diff(config(BASE), config(moved))
    assert (found.changes, found.refusals) == ((), ())


@pytest.mark.parametrize(
    ("old", "new", "refusals"),
    [
        ("port: 8001", "port: 8002", ["2: server.port is other than what is served"]),
        (
            "port: 8001",
            "state: 'sqlite:///b.db', port: 8001",
            ["2: server.state is other than what is served"],
        ),
        ("source: y", "source: z", ["5: models.b.source is other than what is served"]),
        (
            "source: y",
            "source: y, engine: {max_model_len: 9}",
            ["5: models.b.engine.max_model_len is other than what is served"],
        ),
        ("source: y", "source: y, aliases: [c]", ["5: models.b.aliases is other than what is served"]),
        ("  - {name: b, source: y}\n", "", ["3: models.b is gone"]),
        ("name: b", "name: c", ["3: models.c is new", "3: models.b is gone"]),
        (
            "policies:",
            "engine: {threads: 2}\npolicies:",
            ["9: engine.threads is other than what is served"],
        ),
        (
            "policies:",
            "observability: {prometheus: false}\npolicies:",
            ["9: observability.prometheus is other than what is served"],
        ),
    ],
)
def test_what_cannot_change_is_refused_with_its_line(old: str, new: str, refusals: list[str]) -> None:
    assert changed(old, new)[1] == refusals


def test_models_keep_their_places() -> None:
    lines = BASE.splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    (refusal,) = diff(config(BASE), config("".join(lines))).refusals
    assert str(refusal).startswith(
        "airi.yaml:3: models are in another order; accepted while serving: what it was"
    )


def test_whether_keys_are_asked_for_does_not_change() -> None:
    none = (
        BASE.replace("tenants:", "x:")
        .replace("x:\n", "")
        .replace("  - {name: acme, weight: 2, groups: [gold], limits: {rpm_limit: 5}}\n  - {name: lab}\n", "")
    )
    for old, new, what in ((BASE, none, "has no entry any more"), (none, BASE, "has its first entry")):
        (refusal,) = diff(config(old), config(new)).refusals
        assert what in str(refusal)


def test_a_secret_in_a_value_is_not_told() -> None:
    old = config(with_demo("server: {state: 'postgresql://u:hunter2@h/d'}\n"))
    new = config(with_demo("server: {state: 'postgresql://u:hunter3@h/d'}\n"))
    (refusal,) = diff(old, new).refusals
    assert "hunter" not in str(refusal)


def test_a_text_that_has_changed_on_disk_is_a_change(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("owl")
    text = with_demo("content: {input: [{name: w, file: words}]}\n")
    old = write(tmp_path, text)
    (tmp_path / "words").write_text("heron")
    assert diff(old, write(tmp_path, text)).changes == ("content.words",)


_PIECES: dict[str, list[str]] = {
    "server": ["{}", "{port: 1}", "{body_limit: 1MiB}", "{open: {metrics: true}}", "{cors: {origins: [x]}}"],
    "engine": ["{}", "{threads: 2}", "{kv_memory: 1GiB}", "{max_num_seqs: 3}", "{record_steps: a}"],
    "models": [
        "[{name: a, source: x}]",
        "[{name: a, source: y}]",
        "[{name: a, source: x, price: {input_per_1m: 1}}]",
        "[{name: a, source: x, slo: {itl_ms: {p99: 3}}}]",
        "[{name: a, source: x, engine: {dtype: float32}}]",
        "[{name: a, source: x, aliases: [c]}]",
        "[{name: a, source: x, chat_template: t}]",
        "[{name: a, source: x}, {name: b, source: y}]",
        "[{name: b, source: y}, {name: a, source: x}]",
    ],
    "tenants": ["[]", "[{name: t}]", "[{name: t, weight: 2}]", "[{name: u}, {name: t}]"],
    "content": ["{}", "{input: [{name: r, words: [w]}]}"],
    "observability": ["{}", "{prometheus: false}"],
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[ConfigFile, ConfigFile]:
    """Two configs that differ in one piece or a few."""
    one = {name: draw(st.sampled_from(texts)) for name, texts in _PIECES.items()}
    others = draw(st.lists(st.sampled_from(sorted(_PIECES)), max_size=3))
    return made(one), made(one | {name: draw(st.sampled_from(_PIECES[name])) for name in others})


def made(pieces: dict[str, str]) -> ConfigFile:
    return config("version: 1\n" + "".join(f"{name}: {text}\n" for name, text in pieces.items()))


@given(pairs())
@settings(max_examples=300)
def test_what_is_not_refused_leaves_engine_and_server_as_they_are(
    pair: tuple[ConfigFile, ConfigFile],
) -> None:
    old, new = pair
    found, back = diff(old, new), diff(new, old)
    if not found.refusals:
        assert engine_options(old) == engine_options(new)
        kept = [
            replace(options, app=replace(options.app, tenants=())) for options in map(server_options, pair)
        ]
        assert kept[0] == kept[1]
    if not found.refusals and not found.changes:
        names = [sorted(tenant.name for tenant in file.config.tenants) for file in pair]
        assert names[0] == names[1]
        assert old.config.content == new.config.content
    assert (back.changes, bool(back.refusals)) == (found.changes, bool(found.refusals))


# -- all parts or none -------------------------------------------------------------------------


class FakePart:
    """Holds a number of a config, and tells what is done to it."""

    def __init__(self, name: str, log: list[str], fails: str = "") -> None:
        self.name, self._log, self._fails = name, log, fails

    def _do(self, what: str) -> None:
        self._log.append(f"{self.name} {what}")
        if self._fails == what:
            raise ConfigError(f"{self.name} cannot {what}")

    async def prepare(self, new: ConfigFile) -> Prepared:
        self._do("prepare")

        async def undo() -> None:
            self._do("undo")

        return Prepared(commit=lambda: self._do("commit"), undo=undo)


@pytest.mark.parametrize(
    ("fails", "log"),
    [
        ("", ["1 prepare", "2 prepare", "3 prepare", "1 commit", "2 commit", "3 commit"]),
        ("prepare", ["1 prepare", "2 prepare", "3 prepare", "2 undo", "1 undo"]),
    ],
)
def test_a_part_that_fails_undoes_the_others(fails: str, log: list[str]) -> None:
    done: list[str] = []
    parts = [FakePart("1", done), FakePart("2", done), FakePart("3", done, fails)]
    file = config(BASE)
    if fails:
        with pytest.raises(ConfigError, match=f"3 cannot {fails}"):
            asyncio.run(apply(file, parts))
    else:
        asyncio.run(apply(file, parts))
    assert done == log


def test_an_undo_that_fails_does_not_keep_others_from_theirs(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    parts = [FakePart("1", done), FakePart("2", done, "undo"), FakePart("3", done, "prepare")]
    file = config(BASE)
    with pytest.raises(ConfigError, match="3 cannot prepare"):
        asyncio.run(apply(file, parts))
    assert done[-2:] == ["2 undo", "1 undo"]
    assert "2 could not be set back" in caplog.text


def reload(
    file: ConfigFile, *parts: FakePart, check: Callable[[ConfigFile], None] | None = None
) -> tuple[Outcome, ConfigFile]:
    """One reload: what became of it, and what holds then."""

    async def run() -> tuple[Outcome, ConfigFile]:
        reloader = Reloader(file, parts, check=check)
        return await reloader.reload(), reloader.file

    return asyncio.run(run())


def test_a_reload_applies_what_can_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path, BASE)
    file.path.write_text(BASE.replace("weight: 2", "weight: 3"))
    done: list[str] = []
    with caplog.at_level(logging.INFO, "airi.config"):
        outcome, held = reload(file, FakePart("1", done))
    assert outcome == Outcome(changes=("tenants.acme.weight",))
    assert outcome.is_applied
    assert held.config.tenants[0].weight == 3
    assert done == ["1 prepare", "1 commit"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{file.path} was reloaded: tenants.acme.weight"
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            BASE.replace("8001", "8002").replace("weight: 2", "weight: 3"),
            "server.port is other than what is served",
        ),
        (BASE.replace("weight: 2", "weight: -3"), "tenants[0].weight is -3; accepted: a positive number"),
        (BASE.replace("permit", "allow"), "policies.text is not Cedar"),
        ("", "the file is empty"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_reload_that_is_refused_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None, says: str
) -> None:
    file = write(tmp_path, BASE)
    if text is None:
        file.path.unlink()
    else:
        file.path.write_text(text)
    done: list[str] = []
    outcome, held = reload(file, FakePart("1", done), check=check_policies)
    assert not outcome.is_applied
    assert any(says in line for line in outcome.refusals)
    assert held is file
    assert done == []
    (record,) = caplog.records
    assert says in record.getMessage()
    assert record.getMessage().startswith(f"{file.path} was not reloaded, nothing has changed: ")


def test_a_part_that_refuses_keeps_what_holds(tmp_path: Path) -> None:
    file = write(tmp_path, BASE)
    file.path.write_text(BASE.replace("weight: 2", "weight: 3"))
    done: list[str] = []
    outcome, held = reload(file, FakePart("1", done), FakePart("2", done, "prepare"))
    assert outcome == Outcome(refusals=("2 cannot prepare",))
    assert held is file


def test_a_part_that_is_broken_does_not_end_what_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, BASE)

    async def prepare(*_: object) -> Prepared:
        raise RuntimeError("with a secret")

    part = FakePart("1", [])
    monkeypatch.setattr(part, "prepare", prepare)
    outcome, held = reload(file, part)
    assert outcome == Outcome(refusals=("a part failed: RuntimeError",))
    assert held is file


def test_reloads_follow_one_another(tmp_path: Path) -> None:
    file = write(tmp_path, BASE)
    done: list[str] = []

    async def run() -> list[Outcome]:
        reloader = Reloader(file, [FakePart("1", done)])
        return await asyncio.gather(*(reloader.reload() for _ in range(3)))

    assert all(outcome.is_applied for outcome in asyncio.run(run()))
    assert done == ["1 prepare", "1 commit"] * 3
