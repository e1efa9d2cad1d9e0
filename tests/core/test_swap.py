"""R1-R3: a preempted request comes back by the cheaper way, a copy in the host or computing, with the same text."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from airi._core import Admission, MemoryOpKind

from .harness import Config, ModelSpec
from .tiered import Tiered, Weather

TIGHT = ModelSpec(
    blocks=24,
    block_size=4,
    max_model_len=64,
    max_num_seqs=6,
    max_batch_tokens=32,
    admission=Admission.MAX_UTIL,
)


def crowd(executor: Tiered, count: int = 12) -> None:
    """Requests that share nothing and grow until they do not fit together."""
    rng = random.Random(4)
    for _ in range(count):
        executor.accepted([rng.randint(1, 900) for _ in range(rng.randint(9, 20))], max_new=24)


def run_crowd(config: Config, weather: Weather | None = None) -> Tiered:
    executor = Tiered([TIGHT], config, weather=weather)
    crowd(executor)
    while executor.runtime.has_work():
        executor.step()
        executor.runtime.check_invariants()
    executor.settle()
    assert executor.runtime.stats()[0].active_blocks == 0
    return executor


def test_a_preempted_request_is_swapped_where_copies_are_fast() -> None:
    plain = run_crowd(Config())
    swapping = run_crowd(Config(host_blocks=64))
    assert swapping.outputs == plain.outputs
    stats = swapping.runtime.stats()[0]
    assert plain.runtime.stats()[0].swaps == 0
    assert stats.swaps > 0
    assert swapping.tiered.counts[MemoryOpKind.LOAD] > 0

    def computed(executor: Tiered) -> int:
        return sum(row.count for step in executor.steps for row in step.rows)

    assert computed(swapping) < computed(plain), "what was copied is not computed again"


@pytest.mark.parametrize(
    "config",
    [
        Config(host_blocks=64, host_bytes_per_us=0.5),
        Config(host_blocks=64, host_bytes_per_us=0.0),
        Config(host_blocks=1),
    ],
    ids=["slow", "never", "no room"],
)
def test_a_preempted_request_is_computed_where_copies_are_not_worth_it(config: Config) -> None:
    executor = run_crowd(config)
    assert executor.runtime.stats()[0].preemptions > 0
    assert executor.runtime.stats()[0].swaps == 0
    assert executor.tiered.counts[MemoryOpKind.LOAD] == 0
    assert executor.outputs == run_crowd(Config()).outputs


def test_kept_copies_outlast_what_else_is_stored() -> None:
    """A host that holds little more than what is swapped: stores of others do not push it out."""
    executor = run_crowd(Config(host_blocks=14))
    stats = executor.runtime.stats()[0]
    assert stats.swaps > 0
    # What was kept for them is there when they come back: at least a block of each is loaded, none is lost.
    assert executor.tiered.counts[MemoryOpKind.LOAD] >= stats.swaps
    assert executor.outputs == run_crowd(Config()).outputs


@pytest.mark.parametrize("seed", range(15))
def test_swaps_that_fail_or_are_late_change_no_text(seed: int) -> None:
    """R2, R3."""
    rng = random.Random(seed)
    weather = Weather(
        failing=lambda kind: rng.random() < 0.3,
        delay_us=lambda kind: rng.choice([10, 10, 5000]),
    )
    config = Config(
        host_blocks=rng.randint(8, 64),
        max_preemptions=rng.randint(0, 3),
        load_timeout_us=rng.choice([300, 100_000]),
    )
    executor = run_crowd(config, weather)
    assert executor.outputs == run_crowd(replace(config, host_blocks=0)).outputs
    most = len(executor.outputs) * (config.max_preemptions + 1)
    assert executor.runtime.stats()[0].preemptions <= most


def test_cancelling_what_is_swapped_leaves_no_pin() -> None:
    executor = Tiered([TIGHT], Config(host_blocks=16))
    crowd(executor)
    while executor.runtime.stats()[0].swaps == 0:
        executor.step()
    for request in executor.texts:
        executor.runtime.cancel(request)
    executor.run()
    executor.settle()
    executor.runtime.check_invariants()
    rng = random.Random(9)
    executor.accepted([rng.randint(1, 900) for _ in range(62)], max_new=2)
    executor.run()
    executor.accepted([rng.randint(1, 900) for _ in range(62)], max_new=2)
    executor.settle()
    dropped = executor.runtime.stats()[0].tiers.dropped_stores
    executor.run()
    executor.settle()
    stats = executor.runtime.stats()[0].tiers
    assert stats.host_blocks == 16
    assert stats.dropped_stores == dropped, "a pinned slot would be in the way of those stored at a time"
