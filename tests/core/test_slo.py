"""Latency targets in the whole runtime: the plans are the naive scheduler's, and S2 to S5 of scheduling.md."""

from __future__ import annotations

import random
import re
from collections import deque
from dataclasses import replace

import pytest

from airi import _core
from airi._core import Admission

from .harness import Config, Executor, ModelSpec, Row, Step
from .naive_slo import SLO_COUNTERS
from .pipeline import Pipeline
from .timed import STATE, Targets, TimedExecutor, spec_of, true_time, work_of
from .twin import Twin, random_config, random_quota, random_spec, random_submit


def random_targets(rng: random.Random, bands: int) -> Targets:
    def some(low: int, high: int) -> int | None:
        return rng.choice([None, rng.randint(low, high), rng.randint(low, high), 0, 2**53])

    return tuple((some(100, 20_000), some(100, 3000)) for _ in range(rng.randint(1, bands)))


@pytest.mark.parametrize("seed", range(10))
def test_a_random_trace_with_targets_is_planned_as_the_naive_scheduler_plans_it(seed: int) -> None:
    run_random_trace(seed, ticks=120)


@pytest.mark.slow  # about 60 s
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_random_traces_with_targets_are_planned_as_the_naive_scheduler_plans_them(seed: int) -> None:
    run_random_trace(seed, ticks=300)


def run_random_trace(seed: int, ticks: int) -> Twin:
    rng = random.Random(seed)
    config = random_config(rng)
    specs = [random_spec(rng) for _ in range(rng.randint(1, 2))]
    for spec in specs:
        spec.targets = random_targets(rng, config.num_bands)
        spec.itl_credit = rng.choice([0.0, 0.3, 1.0])
    twin = Twin(specs, config)
    for model, naive in enumerate(twin.naive):
        if rng.random() < 0.85:
            twin.ex.runtime.step_time(model).import_state(STATE)
            naive.slo.model.import_state(STATE)
    load = rng.choice([0.2, 0.5, 1.0])

    def step() -> Step | None:
        noise = rng.choice([1.0, 1.0, 1.0, rng.uniform(0.3, 4.0)])
        return twin.step(device_us=lambda step: int(noise * true_time(work_of(step.rows))))

    for _ in range(ticks):
        while rng.random() < load / (1 + load):
            random_submit(rng, twin)
        if rng.random() < 0.05 and twin.live:
            twin.cancel(rng.choice(sorted(twin.live)))
        if seed % 2 and rng.random() < 0.05:
            random_quota(rng, twin)
        step()
    for _ in range(20_000):
        if step() is None:
            break
    assert not twin.ex.runtime.has_work()
    return twin


@pytest.mark.parametrize("seed", range(4))
def test_a_class_in_a_hurry_beside_a_batch_is_planned_as_the_naive_scheduler_plans_it(seed: int) -> None:
    """Every rule occurs: late and timely tokens, best effort, decodes that sit out a step."""
    rng = random.Random(seed)
    spec = spec_of(((6000, 900),), max_batch_tokens=64, max_num_seqs=28)
    twin = Twin([spec], Config(num_bands=2, aging_us=rng.choice([None, 20_000])))
    twin.ex.runtime.step_time(0).import_state(STATE)
    twin.naive[0].slo.model.import_state(STATE)

    def ask(band: int, prompt: int, new: int) -> None:
        text = [rng.randint(0, 9) for _ in range(prompt)]
        plain = {"min_new": 0, "stop": (), "salts": (), "deadline": None, "compute_all": False}
        twin.submit(text, model=0, tenant=0, band=band, max_new=new, arrival=twin.ex.now, **plain)  # type: ignore[arg-type]

    for _ in range(20):
        ask(1, 4, 300)
    for _ in range(300):
        if rng.random() < 0.15:
            ask(0, rng.choice([20, 60, 120]), rng.randint(5, 40))
        twin.step(device_us=lambda step: true_time(work_of(step.rows)))
    stats = twin.ex.runtime.stats()[0]
    counts = {name: getattr(stats, name) for name in SLO_COUNTERS if not name.startswith("requests")}
    assert min(counts.values()) > 0, counts


def plans(spec: ModelSpec, seed: int, *, trained: bool) -> list[tuple[list[Row], list[tuple[int, int, int]]]]:
    rng = random.Random(seed)
    executor = Executor([spec], Config(num_bands=2, aging_us=5000))
    if trained:
        executor.runtime.step_time(0).import_state(STATE)
    for _ in range(60):
        while rng.random() < 0.4:
            text = [rng.randint(0, 9) for _ in range(rng.randint(1, 40))]
            executor.submit(
                text, max_new=rng.randint(1, 20), band=rng.randint(0, 1), tenant=rng.randint(0, 2)
            )
        executor.step(device_us=rng.randint(100, 900))
    executor.run()
    return [(s.rows, s.deltas) for s in executor.steps]


@pytest.mark.parametrize("seed", range(4))
def test_s5_plans_are_unchanged_without_targets_without_a_trained_model_and_where_nothing_presses(
    seed: int,
) -> None:
    rng = random.Random(seed)
    base = ModelSpec(
        max_num_seqs=6, max_batch_tokens=rng.choice([8, 24]), admission=rng.choice(list(Admission))
    )
    plain = plans(base, seed, trained=False)
    assert plans(replace(base, targets=((None, None), (None, None))), seed, trained=True) == plain
    assert plans(replace(base, targets=((2**53, 2**53), (2**53, None))), seed, trained=True) == plain
    # An untrained model would learn on the way: fewer steps than it takes to.
    short = replace(base, targets=((1000, 300),))
    assert plans(short, seed, trained=False)[:30] == plain[:30]


@pytest.mark.parametrize("credit", [0.0, 0.5, 1.0])
def test_s2_no_stream_misses_its_target_while_long_prompts_arrive(credit: float) -> None:
    """The model is right and the load feasible: no gap exceeds the target, saved time included."""
    itl = 2500
    gaps: dict[str, list[int]] = {}
    for name, targets in (("none", ()), ("itl", ((None, itl),))):
        spec = spec_of(targets)
        spec.itl_credit = credit
        executor = TimedExecutor(spec)
        for _ in range(8):
            executor.ask(16, 250)
        while executor.runtime.has_work():
            if executor.now % 7 == 0 and len(executor.streams) < 20:
                executor.ask(800, 4)
            executor.tick()
        gaps[name] = [gap for s in executor.streams.values() for gap in s.gaps]
        if targets:
            stats = executor.runtime.stats()[0]
            assert (stats.next_tokens_late, stats.requests_late) == (0, 0)
            assert stats.next_tokens_on_time == sum(len(s.gaps) for s in executor.streams.values())
    tile = 8 * 20 + 8 * 800 * 0.05  # microseconds of a block at the end of these prompts
    assert max(gaps["itl"]) <= (1 + credit) * itl
    assert sum(g > itl + tile for g in gaps["itl"]) < 0.01 * len(gaps["itl"]), "and rarely so much"
    assert max(gaps["none"]) > 2 * itl


@pytest.mark.parametrize("credit", [0.0, 1.0])
def test_credit_makes_streams_late_at_the_99th_percentile_of_their_gaps(credit: float) -> None:
    """Why there is none by default: each prompt that follows a quiet time takes all that was saved at once."""
    itl = 2500
    spec = spec_of(((None, itl),))
    spec.itl_credit = credit
    executor = TimedExecutor(spec)
    streams = [executor.ask(16, 300) for _ in range(4)]
    while executor.runtime.has_work():
        if len(executor.steps) % 40 == 20:
            executor.ask(200, 1)
        executor.tick()
    for request in streams:
        gaps = sorted(executor.streams[request].gaps)
        assert (gaps[int(0.99 * len(gaps))] > itl) == (credit > 0)


def test_s3_a_prompt_makes_progress_beside_decodes_that_are_always_late() -> None:
    executor = TimedExecutor(spec_of(((None, 300),)))  # thirty take five times as long
    for _ in range(31):
        executor.ask(8, 400)
    while any(not s.emitted for s in executor.streams.values()):
        executor.tick()
    late = executor.ask(120, 2)
    steps = 0
    while not executor.streams[late].emitted:
        executor.tick()
        steps += 1
        assert steps <= 120 / 8 * 17, "a chunk of a 32nd of a step after sixteen steps without"


@pytest.mark.parametrize("seed", range(6))
def test_s3_a_feasible_prompt_that_is_next_gets_its_first_chunk_before_its_first_token_is_due(
    seed: int,
) -> None:
    rng = random.Random(seed)
    ttft = rng.randint(12_000, 40_000)
    # Thirty decodes together take longer than their target allows, so that they leave nothing.
    executor = TimedExecutor(spec_of(((None, 560), (ttft, None)), max_batch_tokens=512), Config(num_bands=2))
    for _ in range(30):
        executor.ask(rng.randint(8, 40), 900)
    while any(not s.emitted for s in executor.streams.values()):
        executor.tick()
    for _ in range(3):
        prompt = executor.ask(rng.randint(100, 300), 2, band=1)
        while executor.streams[prompt].first_chunk is None:
            step = executor.tick()
            assert step is not None
        stream = executor.streams[prompt]
        assert stream.first_chunk is not None
        assert stream.first_chunk <= stream.arrival + ttft + max(executor.durations)
        while not stream.emitted:
            executor.tick()


def overload(executor: TimedExecutor, *, requests: int, most_ticks: int) -> None:
    """Short and long prompts, each before the device has run more than `most_ticks` steps; then all to the end."""
    rng = random.Random(5)
    for _ in range(requests):
        executor.ask(rng.choice([60, 400]), 3)
        for _ in range(rng.randint(0, most_ticks)):
            executor.tick()
    while executor.runtime.has_work():
        executor.tick()


@pytest.mark.parametrize("aging_us", [None, 30_000])
def test_s4_requests_that_cannot_make_it_step_aside_and_finish(aging_us: int | None) -> None:
    """Far more load than the device can take for a while: those that are let go make room for the others."""
    on_time = {}
    for name, targets in (("none", ()), ("ttft", ((8000, None),))):
        executor = TimedExecutor(spec_of(targets), Config(aging_us=aging_us))
        overload(executor, requests=150, most_ticks=2)
        assert all(reason == _core.FinishReason.LENGTH for reason in executor.finished.values())
        assert len(executor.finished) == 150
        on_time[name] = sum(s.ttft <= 8000 for s in executor.streams.values())
        if targets:
            stats = executor.runtime.stats()[0]
            assert stats.best_effort > 0
            assert stats.first_tokens_on_time == on_time[name]
            assert stats.first_tokens_late == 150 - on_time[name]
            assert stats.requests_on_time == on_time[name], "nothing else is promised"
    assert on_time["ttft"] > 1.5 * on_time["none"]


@pytest.mark.parametrize("aging_us", [None, 30_000])
def test_in_a_long_overload_as_many_are_in_time_as_fit(aging_us: int | None) -> None:
    """Twice the load that the device can take, for nearly 300 targets: who comes back makes nobody late."""
    executor = TimedExecutor(spec_of(((8000, None),)), Config(aging_us=aging_us))
    overload(executor, requests=600, most_ticks=1)
    assert len(executor.finished) == 600
    assert sum(stream.ttft <= 8000 for stream in executor.streams.values()) > 0.4 * 600


def test_s4_best_effort_ends_by_itself_under_load_that_never_ends() -> None:
    executor = TimedExecutor(spec_of(((8000, None),)))
    hopeless = [executor.ask(900, 2) for _ in range(8)]  # the last would be hopeless after the first
    for _ in range(2000):
        if len(executor.streams) - len(executor.finished) < 12:
            executor.ask(200, 2)
        executor.tick()
        if all(r in executor.finished for r in hopeless):
            break
    assert executor.runtime.stats()[0].best_effort > 0
    assert all(r in executor.finished for r in hopeless)


@pytest.mark.parametrize("device_us", [0, 1, 100, 2**53])
@pytest.mark.parametrize(
    "targets",
    [
        ((0, 0),),
        ((2**53, 2**53),),
        ((0, None),),
        ((None, 0),),
        ((1, 1), (2**53, 0)),
        ((5000, 500), (None, None)),
    ],
)
@pytest.mark.parametrize("clock", ["still", "back"])
def test_extreme_targets_and_clocks_hang_nothing(targets: Targets, device_us: int, clock: str) -> None:
    for state in (STATE, None):
        executor = Executor(
            [spec_of(targets, max_num_seqs=6, max_batch_tokens=64)], Config(num_bands=2, aging_us=None)
        )
        if state is not None:
            executor.runtime.step_time(0).import_state(state)
        rng = random.Random(1)
        for i in range(24):
            executor.accepted([rng.randint(1, 9)] * rng.randint(1, 500), max_new=20, band=i % 2)
        for _ in range(6000):
            if not executor.runtime.has_work():
                break
            step = executor.plan()
            assert step is not None
            executor.commit(step, device_us=device_us)
            executor.now = 0 if clock == "still" else max(0, executor.now - 2 * device_us)
            executor.runtime.check_invariants()
        assert not executor.runtime.has_work()


def test_the_step_in_flight_counts_for_who_comes_while_it_runs() -> None:
    """One step ahead, a first token is judged from when the device will be free, and not from now."""
    for busy in (False, True):
        ex = Pipeline([spec_of(((4000, None), (None, None)))], Config(num_bands=2))
        ex.runtime.step_time(0).import_state(STATE)
        ex.accepted([1] * (256 if busy else 8), max_new=2, band=1)
        ex.step()
        assert len(ex.in_flight) == 1
        ex.accepted([2] * 8, max_new=2, band=0)
        ex.plan()
        assert ex.runtime.stats()[0].best_effort == int(busy)


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_a_prompt_beside_a_stream_takes_as_many_steps_one_ahead_as_without(steps_ahead: int) -> None:
    """A token that the step in flight brings counts as emitted when that ends: the next one has its whole target."""
    spec = spec_of(((None, 2500),))
    ex = Pipeline([spec]) if steps_ahead else Executor([spec])
    ex.runtime.step_time(0).import_state(STATE)

    def tick() -> None:
        planned = ex.plan()
        due = ex.in_flight if isinstance(ex, Pipeline) else deque([planned] if planned else [])
        if len(due) > steps_ahead or (due and planned is None):
            step = due.popleft()
            ex.commit(step, device_us=true_time(work_of(step.rows)))

    ex.accepted([1] * 8, max_new=200)
    for _ in range(10):
        tick()
    prompt = ex.accepted([2] * 800, max_new=2)
    while prompt not in ex.finished:
        tick()
    chunks = [row.count for step in ex.steps for row in step.rows if row.request == prompt and row.count > 1]
    assert len(chunks) <= 17, "as in step with the device"
    assert ex.runtime.stats()[0].next_tokens_late == 0


def test_a_huge_context_does_not_hold_others_up() -> None:
    """A decode whose context alone takes longer than the target is best effort: it bounds nobody's budget."""
    executor = TimedExecutor(spec_of(((None, 700),), blocks=8000, max_model_len=16_384, max_batch_tokens=512))
    executor.ask(12_000, 400)
    while not executor.streams[0].emitted:
        executor.tick()
    prompt = executor.ask(2000, 2)
    steps = 0
    while not executor.streams[prompt].emitted:
        executor.tick()
        steps += 1
    assert steps <= 5, "four full steps and the first token"


def test_targets_must_be_times_and_have_a_band_each() -> None:
    for targets, message in (
        (((-1, None),), "ttft_us must be between 0 and 2\\^53, got -1"),
        (((None, 2**53 + 1),), "itl_us must be between 0 and 2\\^53, got 9007199254740993"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelSpec(targets=targets).build()
    with pytest.raises(ValueError, match=re.escape("itl_credit must be in [0, 1], got 1.5")):
        ModelSpec(itl_credit=1.5).build()
    with pytest.raises(ValueError, match="len\\(targets\\) must be at most num_bands, got 2"):
        Executor([ModelSpec(targets=((1, 1), (1, 1)))], Config(num_bands=1))
    with pytest.raises(ValueError, match="model must be a model of this runtime, got 1"):
        Executor().runtime.step_time(1)
