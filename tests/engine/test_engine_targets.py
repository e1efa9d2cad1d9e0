"""Latency targets in the engine: what users may say, what is measured at the start, what is counted."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from airi.cli._flags import parse_target
from airi.engine import Engine, EngineOptions, ModelOptions
from airi.engine.backends import StepInputs
from airi.engine.runner import ModelRunner
from airi.engine.targets import target_of
from airi.engine.warmup import _steps, _work, measure_steps, teach
from airi.errors import ConfigError
from airi.simulate.replay import replay

from .engine_helpers import GREEDY, add, make_engine, run

PROMPT = list(range(1, 60))


def is_trained(engine: Engine) -> bool:
    return engine._runtime.step_time(0).is_trained


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_texts_are_the_same_with_targets(tiny_llama: Path, *, async_scheduling: bool) -> None:
    texts = []
    for targets in ({}, {"ttft_ms": 60_000, "itl_ms": 0.001}, {"ttft_ms": 0, "itl_ms": 1000}):
        engine = make_engine(tiny_llama, async_scheduling=async_scheduling, step_warmup_s=0.05, **targets)
        for i in range(12):
            add(engine, i, PROMPT[i : 20 + 3 * i], max_tokens=12, priority=i % 3 - 1, **GREEDY)
        texts.append({i: output.tokens for i, output in run(engine).items()})
    assert texts[0] == texts[1] == texts[2]


def test_attainment_is_counted(tiny_llama: Path) -> None:
    for ttft_ms, itl_ms, on_time in ((1e9, 1e9, True), (0, 0, False)):
        engine = make_engine(tiny_llama, ttft_ms=ttft_ms, itl_ms=itl_ms)
        for i in range(5):
            add(engine, i, PROMPT, max_tokens=6, **GREEDY)
        run(engine)
        stats = engine.stats()[0]
        first = (stats.first_tokens_on_time, stats.first_tokens_late)
        rest = (stats.next_tokens_on_time, stats.next_tokens_late)
        whole = (stats.requests_on_time, stats.requests_late)
        assert (first, rest, whole) == (((5, 0), (25, 0), (5, 0)) if on_time else ((0, 5), (0, 25), (0, 5)))


def test_steps_are_measured_only_where_something_is_promised(tiny_llama: Path) -> None:
    assert not is_trained(make_engine(tiny_llama))
    assert not is_trained(make_engine(tiny_llama, itl_ms=50, step_warmup_s=0))
    assert not is_trained(make_engine(tiny_llama, itl_ms=math.inf))
    assert is_trained(make_engine(tiny_llama, itl_ms=50))
    assert is_trained(make_engine(tiny_llama, ttft_ms=((2, 100.0),)))
    own = (ModelOptions(path=str(tiny_llama), itl_ms=20.0),)
    assert is_trained(make_engine(models=own))


def test_measuring_stops_when_its_time_is_over_with_a_step_of_both_kinds(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    runner = engine.models[0].runner
    limits = {
        "block_size": 16,
        "num_kv_blocks": engine.models[0].num_kv_blocks,
        "max_num_seqs": 8,
        "max_batch_tokens": 256,
        "max_model_len": engine.models[0].max_model_len,
    }
    arena = engine._hosting.arena
    short = measure_steps(runner, arena, seconds=0.0, **limits)
    assert [step.work[0] > step.work[1] for step in short] == [False, True]
    assert all(step.micros > 0 for step in short)
    whole = measure_steps(runner, arena, seconds=60.0, **limits)
    work = {step.work[:2] for step in whole}
    assert work >= {(1, 1), (2, 2), (4, 4), (8, 8), (32, 1), (128, 1), (256, 1)}
    assert any(tokens > rows > 1 for tokens, rows in work), "some do both"
    assert isinstance(runner, ModelRunner)
    assert not runner.block_table.any(), "what it lays out is gone again"
    assert not arena.part(0, arena.nbytes).any(), "and what it wrote"
    teach(engine._runtime, 0, short)
    assert is_trained(engine)


@pytest.mark.parametrize(
    ("max_num_seqs", "max_batch_tokens", "max_model_len"),
    [(1, 1, 2), (1, 64, 40), (64, 16, 512), (3, 512, 17)],
)
def test_measured_steps_keep_within_every_limit(
    tiny_llama: Path, max_num_seqs: int, max_batch_tokens: int, max_model_len: int
) -> None:
    limits = {
        "max_num_seqs": max_num_seqs,
        "max_batch_tokens": max_batch_tokens,
        "max_model_len": max_model_len,
    }
    engine = make_engine(tiny_llama, itl_ms=50, step_warmup_s=5, **limits)
    steps = _steps(**limits)
    assert len(steps[0].tokens) == 1
    for step in steps:
        assert len(step.tokens) <= max_batch_tokens
        assert len(step.slots) <= max_num_seqs
        assert step.seq_lens.max() <= max_model_len
    assert is_trained(engine) == any(len(step.tokens) > len(step.slots) for step in steps)


class Timetable:
    """A clock, and steps that take as long by it as a formula says; every third is disturbed."""

    def __init__(self, memory: tuple[float, ...], arithmetic: tuple[float, ...]) -> None:
        self.now = 0.0
        self._pieces = memory, arithmetic
        self._count = 0

    def micros(self, work: tuple[int, int, int, float]) -> float:
        return max(
            piece[0] + sum(w * x for w, x in zip(piece[1:], work, strict=True)) for piece in self._pieces
        )

    def forward(self, step: StepInputs) -> None:
        self._count += 1
        self.now += self.micros(_work(step)) * (1.7 if self._count % 3 == 0 else 1.0) / 1e6


def test_what_was_measured_predicts_steps_of_every_size(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 ms at least, 300 us a token once arithmetic bounds them: a small model on two cores."""
    engine = make_engine(tiny_llama, max_num_seqs=64)
    model = engine.models[0]
    truth = Timetable((12_000, 5, 20, 0.3, 0.0), (1_000, 300, 20, 0.3, 0.05))
    monkeypatch.setattr(time, "perf_counter", lambda: truth.now)
    monkeypatch.setattr(model.runner.model, "forward", truth.forward)
    measured = measure_steps(
        model.runner,
        engine._hosting.arena,
        block_size=16,
        num_kv_blocks=model.num_kv_blocks,
        max_num_seqs=64,
        max_batch_tokens=512,
        max_model_len=512,
        seconds=2.0,
    )
    assert truth.now < 2.5, "no more than was given, but for what disturbs"
    teach(engine._runtime, 0, measured)
    for work in [
        *((rows, rows, rows * context, 0.0) for rows in (1, 3, 8, 20, 32, 64) for context in (1, 100, 400)),
        *((tokens, 1, 0, tokens * tokens / 2) for tokens in (32, 64, 200, 512)),
        *(
            (rows + tokens, rows + 1, rows * 256, tokens * tokens / 2)
            for rows in (4, 32)
            for tokens in (64, 256)
        ),
    ]:
        predicted = engine.step_time(0).estimate(work)
        assert predicted == pytest.approx(truth.micros(work), rel=0.25), work


def test_steps_of_a_real_model_are_predicted_in_order(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, itl_ms=50, max_num_seqs=32)
    for context in (1, 256):
        one, eight, many = (
            engine.step_time(0).estimate((rows, rows, rows * context, 0.0)) for rows in (1, 8, 32)
        )
        assert 0 < one <= eight <= many
        assert many <= 64 * one, "no row costs more beside others than twice what it costs alone"
    short, long = (engine.step_time(0).estimate((n, 1, 0, n * n / 2)) for n in (32, 256))
    assert 0 < short <= long


def test_texts_after_measuring_are_those_without(tiny_llama: Path) -> None:
    """Whatever measuring leaves in the arena, nobody reads it."""
    texts = []
    for seconds in (0.0, 1.0):
        engine = make_engine(tiny_llama, itl_ms=1000, step_warmup_s=seconds)
        add(engine, 1, PROMPT, max_tokens=20, **GREEDY)
        texts.append(run(engine)[1].tokens)
    assert texts[0] == texts[1]


def test_a_recording_with_targets_replays_to_the_same_plans(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "steps"
    engine = make_engine(tiny_llama, record_steps=str(path), ttft_ms=100, itl_ms=2, max_batch_tokens=64)
    for i in range(20):
        add(engine, i, PROMPT[: 20 + i], max_tokens=8, **GREEDY)
        engine.step()
    run(engine)
    del engine
    found = replay(path)
    assert found.difference is None
    assert found.requests == 20


def options(**fields: Any) -> EngineOptions:
    return EngineOptions(models=(ModelOptions(path="x", **fields.pop("model", {})),), **fields)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "ttft_ms is -1; it must be a number of milliseconds from 0 to 9e\\+12"),
        (math.nan, "ttft_ms is nan; it must be"),
        (True, "ttft_ms is True; it must be"),
        ("50", "ttft_ms is '50'; it must be"),
        (((9, 50.0),), "ttft_ms holds \\(9, 50.0\\); each must be a priority from -8 to 8 and"),
        (((0, -1.0),), "ttft_ms holds \\(0, -1.0\\); each"),
        (((0, 1.0), (0, 2.0)), "ttft_ms names priority 0 twice"),
    ],
)
def test_bad_targets_are_refused_in_one_line(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(ttft_ms=value)
    with pytest.raises(ConfigError, match=message):
        options(model={"ttft_ms": value})


def test_the_time_of_measuring_has_bounds() -> None:
    for seconds in (-0.1, 61.0, math.nan):
        with pytest.raises(ConfigError, match=r"step_warmup_s is .*; it must be in \[0, 60\]"):
            options(step_warmup_s=seconds)


def test_targets_of_a_model_go_before_those_of_the_engine() -> None:
    given = options(ttft_ms=((0, 500.0), (-8, 9000.0)), itl_ms=50, model={"itl_ms": ((8, 20.0),)})
    bands = given.targets(given.models[0])
    assert len(bands) == 17
    assert bands[0] == (None, 20_000)
    assert bands[8] == (500_000, None)
    assert bands[16] == (9_000_000, None)
    assert options().targets(options().models[0]) == []


def test_options_with_targets_travel_to_the_engine_process() -> None:
    given = options(ttft_ms=((0, 500.0), (-4, 5000.0)), itl_ms=50.0)
    assert msgspec.json.decode(msgspec.json.encode(given), type=EngineOptions) == given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {0: None, 8: None}),
        (["50"], {0: 50_000, -8: 50_000}),
        (["0=50", "-4=2e3"], {0: 50_000, -4: 2_000_000, 1: None}),
        (["-4=5000", "0.5"], {0: 500, 8: 500, -4: 5_000_000}),
    ],
)
def test_flags_say_targets_for_all_or_for_some(given: list[str], expected: dict[int, int | None]) -> None:
    found = parse_target("itl_ms", given)
    assert {priority: target_of(found, priority) for priority in expected} == expected
    options(itl_ms=found)


@pytest.mark.parametrize("given", ["fast", "=5", "a=5", "0=", "1=2=3"])
def test_flags_that_say_nothing_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=f"itl_ms is {given!r}; give milliseconds, or PRIORITY=MS"):
        parse_target("itl_ms", [given])
