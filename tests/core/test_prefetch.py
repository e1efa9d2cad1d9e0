"""What lies on disk is on its way to the host while its request still waits; and what was slow once is tried again."""

from __future__ import annotations

import random

import pytest

from airi import _core
from airi._core import Admission, MemoryOpKind

from .harness import Config, ModelSpec
from .tiered import Tiered, Weather

ONE_SEAT = ModelSpec(blocks=64, block_size=4, max_model_len=200, max_num_seqs=1, max_batch_tokens=64)
FAST_DISK = Config(host_blocks=160, disk_blocks=600, max_ops=16, load_timeout_us=10_000, host_bytes_per_us=8e5,
                   disk_bytes_per_us=8e5)  # fmt: skip


GONE = 3
"""Of the prompts of fill(), one that only the disk has."""


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, 900) for _ in range(length)]


def fill(ex: Tiered, length: int) -> None:
    """Runs prompts until the first ones are neither on the device nor in the host any more."""
    for seed in range(1, 2400 // length):
        ex.accepted(prompt(seed, length), max_new=2)
        ex.run()
        ex.settle()
        for _ in range(6):  # what was stored is spilled by later steps
            ex.accepted([seed], max_new=2)
            ex.run()
            ex.settle()


def with_a_prefix_on_disk(length: int, weather: Weather | None = None) -> Tiered:
    """A prompt that neither the device nor the host has any more, behind a request that holds the only seat."""
    ex = Tiered([ONE_SEAT], FAST_DISK, weather=weather)
    fill(ex, length)
    ex.accepted(prompt(100, 8), max_new=60)
    for _ in range(3):
        ex.step()
    return ex


def fetches(ex: Tiered) -> int:
    return ex.tiered.counts[MemoryOpKind.FETCH]


def test_a_prefix_is_fetched_from_the_disk_while_its_request_waits() -> None:
    ex = with_a_prefix_on_disk(41)
    before = fetches(ex)
    late = ex.accepted(prompt(GONE, 41), max_new=2)
    for _ in range(6):
        ex.step()
    assert ex.runtime.stats()[0].waiting == 1
    assert fetches(ex) - before == 10
    ex.run()
    assert fetches(ex) - before == 10, "and not again"
    assert ex.events[late]["num_cached_tokens"] == 40


def test_a_prefetch_that_no_step_had_room_for_is_given_up_in_time() -> None:
    """Sixteen operations fit a step; what the second one has no room for is taken back when the clock says so."""
    ex = with_a_prefix_on_disk(161)
    before = fetches(ex)
    late = ex.accepted(prompt(GONE, 161), max_new=2)
    ex.step()
    ex.now += 10_001
    for _ in range(5):
        ex.step()
    assert ex.runtime.stats()[0].waiting == 1
    assert fetches(ex) - before == 32, "what two steps held"
    ex.run()
    assert ex.finished[late] == _core.FinishReason.LENGTH
    ex.settle()
    ex.runtime.check_invariants()


def test_a_tier_that_was_slow_for_a_while_is_tried_again() -> None:
    """An estimate that nothing is loaded by any more fades back to what was configured."""
    slow = [True]
    spec = ModelSpec(blocks=16, block_size=4, max_model_len=64, max_num_seqs=4, max_batch_tokens=32,
                     admission=Admission.MAX_UTIL)  # fmt: skip
    ex = Tiered(
        [spec], Config(host_blocks=64),
        weather=Weather(delay_us=lambda kind: 60_000 if slow[0] and kind == MemoryOpKind.LOAD else 20),
    )  # fmt: skip

    fresh = iter(range(1000, 2000))

    def loads_of_a_visit() -> int:
        before = ex.tiered.counts[MemoryOpKind.LOAD]
        ex.accepted(prompt(1, 41), max_new=2)
        ex.run()
        for _ in range(3):  # others, that come once, take its blocks on the device
            ex.accepted(prompt(next(fresh), 40), max_new=2)
            ex.run()
        return ex.tiered.counts[MemoryOpKind.LOAD] - before

    bad = [loads_of_a_visit() for _ in range(12)]
    assert bad[1] > 0
    assert 0 in bad[2:], "it has learnt"
    slow[0] = False
    good = [loads_of_a_visit() for _ in range(60)]
    assert min(good[-20:]) > 0, "it has learnt again"


@pytest.mark.parametrize("kind", [MemoryOpKind.LOAD, MemoryOpKind.FETCH])
def test_what_cannot_be_read_is_computed(kind: MemoryOpKind) -> None:
    """T2, from the disk on."""
    bad = [False]
    ex = Tiered([ONE_SEAT], FAST_DISK, weather=Weather(failing=lambda k: bad[0] and k == kind))
    fill(ex, 41)
    bad[0] = True
    again = ex.accepted(prompt(GONE, 41), max_new=2)
    ex.run()
    ex.settle()
    assert ex.runtime.stats()[0].tiers.failures > 0
    assert sum(row.count for step in ex.steps for row in step.rows if row.request == again) == 42
    assert ex.outputs[again] == ex.outputs[7 * (GONE - 1)], "each prompt of fill() is followed by six others"
