"""A recorded engine replays to the same plans, and the recording holds no tokens."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from airi import _core
from airi.engine import Engine, EngineOptions, ModelOptions
from airi.engine.step_log import MAGIC, RecordingRuntime, StepLog
from airi.errors import ConfigError
from airi.sampling_params import SamplingParams
from airi.simulate.replay import replay
from tests.engine.engine_helpers import records

READERS = {
    "capacity",
    "check_invariants",
    "drain_events",
    "has_work",
    "kv_snapshot",
    "read_decisions",
    "read_kv_events",
    "state",
    "stats",
    "step_time",  # engines read it; what is put into it would have to be recorded
    "tenant_counter",
    "weights_at",
}
"""Methods of a runtime that plans do not depend on."""


def record(model: Path, path: Path, *, ahead: bool = True) -> list[list[int]]:
    """An engine with little memory: shared prefixes, cancels, salts, preemptions. Returns the prompts."""
    options = EngineOptions(
        models=(ModelOptions(path=str(model)),),
        kv_memory=1 << 20,
        max_num_seqs=8,
        max_batch_tokens=64,
        threads=1,
        async_scheduling=ahead,
        record_steps=str(path),
    )
    engine = Engine(options)
    draw = np.random.default_rng(0)
    prompts = []
    for i in range(40):
        prompt = [
            *range(5, 5 + int(draw.integers(1, 40))),
            *draw.integers(0, 90, draw.integers(1, 40)).tolist(),
        ]
        prompts.append(prompt)
        params = SamplingParams(max_tokens=int(draw.integers(1, 20)), seed=i)
        engine.add_request(i, 0, prompt, params, tenant=i % 3, cache_salt=b"salt" if i % 5 == 0 else None)
        if i % 3 == 0:
            engine.step()
        if i % 7 == 0:
            engine.cancel(i)
        if i == 20:
            engine.set_tenant(1, 3.0, kv_quota=0.25)
    while engine.has_work():
        engine.step()
    return prompts


def rewrite(path: Path, found: list[list[object]]) -> None:
    with path.open("wb") as file:
        file.write(MAGIC)
        for one in found:
            data = msgspec.msgpack.encode(one)
            file.write(len(data).to_bytes(4, "little") + data)


@pytest.fixture(scope="module")
def log(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "steps"
    record(tiny_llama, path)
    return path


@pytest.mark.parametrize("ahead", [False, True])
def test_a_recording_replays_to_the_same_plans(tiny_llama: Path, tmp_path: Path, *, ahead: bool) -> None:
    record(tiny_llama, tmp_path / "log", ahead=ahead)
    found = replay(tmp_path / "log")
    assert found.difference is None
    assert not found.is_cut
    assert found.requests == 40
    assert found.steps > 30


def test_a_recording_tells_how_long_each_step_took(log: Path) -> None:
    found = replay(log)
    [(model, steps)] = found.step_times.values()
    commits = [r for r in records(log) if r[0] == "commit"]
    assert steps[:, 4].tolist() == [r[-1] for r in commits]
    infos: list[Any] = [r[2] for r in records(log) if r[0] == "step" and r[2] is not None]
    assert steps[:, 0].tolist() == [info["num_tokens"] for info in infos]
    assert steps[:, 1].tolist() == [info["num_rows"] for info in infos]
    assert model.estimate((64, 1, 0, 2048.0)) > 0


def test_everything_that_changes_plans_is_recorded() -> None:
    methods = {name for name, _ in inspect.getmembers(_core.Runtime, callable) if not name.startswith("_")}
    recorded = {name for name in vars(RecordingRuntime) if not name.startswith("_")}
    assert methods == recorded | READERS


def test_a_recording_holds_no_tokens(tiny_llama: Path, tmp_path: Path) -> None:
    prompts = record(tiny_llama, tmp_path / "log")
    submits = [r for r in records(tmp_path / "log") if r[0] == "submit"]
    written = [np.frombuffer(r[2], np.int32).tolist() for r in submits]
    tokens = {
        t: s
        for prompt, other in zip(prompts, written, strict=True)
        for t, s in zip(prompt, other, strict=True)
    }
    # One substitute for each token and no other, and hardly any stays itself.
    assert [[tokens[t] for t in prompt] for prompt in prompts] == written
    assert len(set(tokens.values())) == len(tokens)
    assert sum(t == s for t, s in tokens.items()) < len(tokens) / 4
    assert b"salt" not in (tmp_path / "log").read_bytes().replace(b"salts", b"")
    assert str(tiny_llama).encode() not in (tmp_path / "log").read_bytes()


def test_substitutes_are_drawn_anew_for_each_file(tmp_path: Path) -> None:
    tokens = np.arange(1000, dtype=np.int32)
    logs = [StepLog(str(tmp_path / name), 1000) for name in "ab"]
    first, second = (log.substitute(tokens).tolist() for log in logs)
    assert first != second
    assert sorted(first) == sorted(second) == tokens.tolist()
    assert logs[0].substitute(np.array([-1, 5000], np.int32)).tolist() == [-1, 5000]
    for log in logs:
        log.close()


def test_the_first_plan_that_differs_is_named(log: Path, tmp_path: Path) -> None:
    found = records(log)
    steps = [i for i, r in enumerate(found) if r[0] == "step" and r[2] is not None]
    target = steps[len(steps) // 2]
    digests = found[target][3]
    assert isinstance(digests, dict)
    digests["deltas"] = b"otherwise"
    rewrite(tmp_path / "log", found)
    number = found[target][2]["step_id"]
    said = replay(tmp_path / "log").difference
    assert said == f"record {target + 1}, step {number}: the contents of deltas differ"


def test_a_request_that_is_missing_shows_in_the_plans(log: Path, tmp_path: Path) -> None:
    found = records(log)
    first = next(i for i, r in enumerate(found) if r[0] == "submit")
    rewrite(tmp_path / "log", found[:first] + found[first + 1 :])
    assert "recorded was" in str(replay(tmp_path / "log").difference)


def test_a_file_that_was_cut_is_replayed_as_far_as_it_goes(log: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(log.read_bytes()[:-7])
    found = replay(tmp_path / "log")
    assert found.difference is None
    assert found.is_cut


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"something else", "it is no step log of this version"),
        (MAGIC, "there is nothing in it"),
        (MAGIC + b"\x01\x00\x00\x00\xc1", "record 1: "),
        (MAGIC + b"\x03\x00\x00\x00\x91\xa1\xff", "record 1: 'utf-8' codec can't decode"),
        (MAGIC + b"\x05\x00\x00\x00\x91\xa3abc", "record 1: it is 'abc' where config must be first"),
    ],
)
def test_a_file_that_is_no_log_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=said) as caught:
        replay(path)
    assert "\n" not in str(caught.value)


def test_a_log_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"record_steps .*none.*No such file"):
        StepLog(str(tmp_path / "none" / "log"), 10)


def test_a_full_disk_ends_the_log_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    log = StepLog("/dev/full", 10)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            log.write("x", b"y" * (1 << 20))
        log.flush()
    assert [r.message for r in caplog.records] == ["steps are no longer recorded: No space left on device"]


def test_tokens_of_a_model_with_a_larger_vocabulary_are_substituted_too(tmp_path: Path) -> None:
    log = StepLog(str(tmp_path / "steps"), 8)
    before = log.substitute(np.arange(8, dtype=np.int32))
    log.grow(4096)
    log.grow(100)
    after = log.substitute(np.arange(4096, dtype=np.int32))
    assert after[:8].tolist() == before.tolist(), "what stood for a token still does"
    assert sorted(after.tolist()) == list(range(4096)), "equal only where equal"
    assert (after[8:] == np.arange(8, 4096)).sum() < 100
    assert log.substitute(np.array([-1], np.int32)).tolist() == [-1]
