"""T1-T6: prefixes come back from the host and the disk, and nothing that can go wrong there changes a text."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from airi import _core
from airi._core import Admission, MemoryOpKind

from .harness import Config, Executor, ModelSpec
from .pipeline import Pipeline
from .tiered import Tiered, Weather

SMALL = ModelSpec(blocks=16, block_size=4, max_model_len=64, max_num_seqs=4, max_batch_tokens=32)


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, 900) for _ in range(length)]


def crowd_out(executor: Executor, count: int = 3) -> None:
    """Runs prompts that take every block of the device."""
    for seed in range(count):
        executor.accepted(prompt(1000 + seed, 40), max_new=2)
        executor.run()


def test_an_evicted_prefix_comes_back_from_the_host() -> None:
    executor = Tiered([SMALL], Config(host_blocks=64))
    first = executor.accepted(prompt(1, 41), max_new=2)
    executor.run()
    crowd_out(executor)
    again = executor.accepted(prompt(1, 41), max_new=2)
    executor.run()
    assert executor.outputs[again] == executor.outputs[first]
    assert executor.events[again]["num_cached_tokens"] == 40
    assert executor.tiered.counts[MemoryOpKind.LOAD] == 10
    assert sum(row.count for s in executor.steps for row in s.rows if row.request == again) == 1 + 1


def test_a_prefix_comes_back_from_the_disk() -> None:
    """T4: device to host to disk to host to device."""
    executor = Tiered([SMALL], Config(host_blocks=20, disk_blocks=100))
    first = executor.accepted(prompt(1, 41), max_new=2)
    executor.run()
    for seed in range(12):
        crowd_out(executor, 1 + seed % 3)
        executor.accepted(prompt(50 + seed, 37), max_new=3)
        executor.run()
    again = executor.accepted(prompt(1, 41), max_new=2)
    executor.run()
    assert executor.outputs[again] == executor.outputs[first]
    assert executor.tiered.counts[MemoryOpKind.SPILL] > 0
    assert executor.tiered.counts[MemoryOpKind.FETCH] > 0


def test_loading_holds_up_nobody_else() -> None:
    executor = Tiered(
        [replace(SMALL, blocks=28)], Config(host_blocks=64), weather=Weather(delay_us=lambda kind: 2000)
    )
    executor.accepted(prompt(1, 41), max_new=2)
    executor.run()
    for seed in range(2, 8):
        executor.accepted(prompt(seed, 40), max_new=2)
        executor.run()
    slow = executor.accepted(prompt(1, 41), max_new=1)
    quick = executor.accepted(prompt(99, 5), max_new=3)
    begin = len(executor.steps)
    executor.run()
    ran = [row.request for s in executor.steps[begin:] for row in s.rows]
    assert ran.index(slow) > max(i for i, r in enumerate(ran) if r == quick)


def test_a_load_that_fails_is_computed_and_charged() -> None:
    executor = Tiered(
        [SMALL], Config(host_blocks=64), weather=Weather(failing=lambda kind: kind == MemoryOpKind.LOAD)
    )
    first = executor.accepted(prompt(1, 41), max_new=2, tenant=1)
    executor.run()
    crowd_out(executor)
    again = executor.accepted(prompt(1, 41), max_new=2, tenant=2)
    executor.run()
    assert executor.outputs[again] == executor.outputs[first]
    assert executor.events[again]["num_cached_tokens"] == 0
    stats = executor.runtime.stats()[0]
    assert stats.tiers.failures == 10
    assert stats.tiers.loads == 0


def test_a_load_that_never_ends_is_given_up() -> None:
    """And its blocks belong to the transfer until it does."""
    late = 60_000_000
    executor = Tiered(
        [SMALL],
        Config(host_blocks=64, load_timeout_us=5000),
        weather=Weather(delay_us=lambda kind: late if kind == MemoryOpKind.LOAD else 20),
    )
    first = executor.accepted(prompt(1, 21), max_new=2)
    executor.run()
    crowd_out(executor)
    again = executor.accepted(prompt(1, 21), max_new=2)
    while executor.runtime.has_work():
        if executor.step() is None:
            executor.now = min(executor.now, 4_000_000)
            executor.now += 1000
        executor.runtime.check_invariants()
    assert executor.outputs[again] == executor.outputs[first]
    assert executor.runtime.stats()[0].active_blocks == 5, "transfers hold what they write"
    executor.settle()
    executor.runtime.check_invariants()
    assert executor.runtime.stats()[0].active_blocks == 0


def test_salts_hold_in_the_tiers() -> None:
    """T6: who does not know the salt loads nothing."""
    executor = Tiered([SMALL], Config(host_blocks=64))
    executor.accepted(prompt(1, 41), max_new=2, salts=((0, b"mine"),))
    executor.run()
    crowd_out(executor)
    for salts in ((), ((0, b"yours"),)):
        other = executor.accepted(prompt(1, 41), max_new=2, salts=salts)
        executor.run()
        assert executor.events[other]["num_cached_tokens"] == 0
    mine = executor.accepted(prompt(1, 41), max_new=2, salts=((0, b"mine"),))
    executor.run()
    assert executor.events[mine]["num_cached_tokens"] == 40


@pytest.mark.parametrize(("quota", "kept"), [(0, False), (12, True)])
def test_quotas_hold_in_the_tiers(quota: int, kept: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """T6: who floods device and host takes no copy that a tenant within its quota has there."""
    executor = Tiered([replace(SMALL, blocks=24)], Config(host_blocks=24))
    executor.runtime.set_kv_quota(1, 0, quota)
    for seed in (1, 2):
        executor.accepted(prompt(seed, 41), max_new=2, tenant=1)
        executor.run()
    for seed in range(12):
        executor.accepted(prompt(1000 + seed, 40), max_new=2, tenant=2)
        executor.run()
        executor.runtime.check_invariants()
    executor.settle()
    again = executor.accepted(prompt(1, 41), max_new=2, tenant=1)
    executor.run()
    assert (executor.events[again]["num_cached_tokens"] == 40) == kept
    assert (executor.tiered.counts[MemoryOpKind.LOAD] > 0) == kept


def test_what_was_not_a_number_is_in_no_tier() -> None:
    executor = Tiered([SMALL], Config(host_blocks=64, store_on_reuse=1))
    bad = executor.accepted(prompt(1, 41), max_new=8)
    for _ in range(3):
        executor.step()
    executor.step(status={bad: int(_core.RowStatus.NAN)})
    executor.run()
    assert executor.finished[bad] == _core.FinishReason.NAN
    executor.settle()
    assert executor.runtime.stats()[0].tiers.host_blocks == 0
    again = executor.accepted(prompt(1, 41), max_new=2)
    executor.run()
    assert executor.events[again]["num_cached_tokens"] == 0


def random_spec(rng: random.Random) -> ModelSpec:
    block_size = rng.choice([2, 4])
    return ModelSpec(
        blocks=rng.randint(40, 80) // block_size,
        block_size=block_size,
        max_model_len=rng.randint(36, 40),
        max_num_seqs=rng.randint(1, 6),
        max_batch_tokens=rng.randint(4, 40),
        admission=rng.choice(list(Admission)),
    )


def random_config(rng: random.Random) -> Config:
    return Config(
        num_bands=rng.randint(1, 3),
        aging_us=rng.choice([None, 900]),
        bypass_tokens=rng.choice([0, 60]),
        max_preemptions=rng.randint(0, 3),
        fairness_gap_tokens=rng.choice([None, None, 20]),
        host_blocks=rng.randint(4, 60),
        disk_blocks=rng.choice([0, 8, 100]),
        max_ops=rng.choice([16, 64]),
        store_on_reuse=rng.randint(0, 2),
        load_timeout_us=rng.choice([400, 3000, 100_000, 2**53]),
    )


def submit_some(rng: random.Random, executor: Executor) -> None:
    """Few families of long prompts, which need not fit the device together."""
    family = rng.randint(1, 6)
    text = prompt(family, rng.randint(8, 28)) + prompt(rng.randint(1, 1000), rng.randint(1, 4))
    executor.submit(
        text,
        model=rng.randrange(len(executor.specs)),
        tenant=rng.randint(0, 3),
        band=rng.randrange(executor.config.num_bands),
        max_new=rng.randint(1, 6),
        salts=rng.choice([(), (), ((3, b"s"),)]),
        deadline=executor.now + rng.randint(1, 20_000) if rng.random() < 0.05 else None,
    )


def random_weather(rng: random.Random) -> Weather:
    failing = rng.choice([0.0, 0.1, 0.5])
    slow = rng.choice([50, 500, 5000])
    return Weather(
        failing=lambda kind: rng.random() < failing,
        delay_us=lambda kind: rng.randint(0, slow),
    )


def drive(executor: Executor, rng: random.Random, ticks: int) -> None:
    for _ in range(ticks):
        while rng.random() < 0.3:
            submit_some(rng, executor)
        if rng.random() < 0.05 and executor.texts:
            executor.runtime.cancel(rng.choice(sorted(executor.texts)))
        if rng.random() < 0.02:
            executor.runtime.set_kv_quota(rng.randint(0, 3), 0, rng.choice([0, 2, 4]))
        executor.step()
        executor.runtime.check_invariants()
    executor.run(limit=20_000)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_transfers_do_texts_are_the_same_and_nothing_leaks(seed: int) -> None:
    """T1-T4: the device checks every KV that a row reads; failures come at every kind of operation."""
    rng = random.Random(seed)
    specs = [random_spec(rng) for _ in range(rng.randint(1, 2))]
    executor = Tiered(specs, random_config(rng), weather=random_weather(random.Random(seed + 1)))
    drive(executor, rng, 120)
    executor.settle()
    executor.runtime.check_invariants()
    assert all(s.active_blocks == 0 for s in executor.runtime.stats())
    for request, end in executor.finished.items():
        if end == _core.FinishReason.LENGTH:
            text = executor.texts[request]
            draws = len(executor.outputs[request])
            for draw in range(draws):
                at = len(text) - draws + draw
                assert text[at] == executor.rule(request, draw, text[at - 1])


@pytest.mark.parametrize("seed", range(10))
def test_a_host_that_is_full_holds_nothing_up_where_nothing_is_ever_given_up(seed: int) -> None:
    """Liveness without a timeout: what finds no slot on its way from the disk is computed."""
    rng = random.Random(seed)
    specs = [random_spec(rng) for _ in range(rng.randint(1, 2))]
    config = replace(
        random_config(rng), load_timeout_us=2**53, host_blocks=rng.randint(1, 6), disk_blocks=100
    )
    executor = Tiered(specs, config, weather=random_weather(random.Random(seed + 1)))
    drive(executor, rng, 120)
    executor.settle()
    assert all(s.active_blocks == 0 for s in executor.runtime.stats())


def test_the_random_traces_meet_every_kind_of_transfer_and_failure() -> None:
    counts = dict.fromkeys(MemoryOpKind, 0)
    failures = 0
    for seed in range(12):
        rng = random.Random(seed)
        specs = [random_spec(rng) for _ in range(rng.randint(1, 2))]
        executor = Tiered(specs, random_config(rng), weather=random_weather(random.Random(seed + 1)))
        drive(executor, rng, 120)
        for kind, count in executor.tiered.counts.items():
            counts[kind] += count
        failures += sum(s.tiers.failures for s in executor.runtime.stats())
    assert all(counts[kind] > 20 for kind in MemoryOpKind if kind != MemoryOpKind.ZERO), counts
    assert failures > 50


@pytest.mark.parametrize("seed", range(12))
def test_infinite_load_times_change_no_plan(seed: int) -> None:
    """T5."""
    plans = []
    for tiers in (False, True):
        rng = random.Random(seed)
        specs = [random_spec(rng) for _ in range(rng.randint(1, 2))]
        config = random_config(rng)
        config = replace(config, host_bytes_per_us=0.0, disk_bytes_per_us=0.0)
        if not tiers:
            config = replace(config, host_blocks=0, disk_blocks=0)
        executor: Pipeline = Tiered(specs, config)
        drive(executor, rng, 100)
        plans.append([(s.now, s.rows, s.deltas) for s in executor.steps if s.rows])
        assert all(kind != MemoryOpKind.LOAD for s in executor.steps for kind, *_ in s.ops)
    assert plans[0] == plans[1]
