"""A request may be cancelled, or run out of time, wherever it stands: it ends at once, and holds nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from airi._core import Admission, Decision, FinishReason, MemoryOpKind, ModelState

from .elastic import Elastic
from .harness import Config, Executor, ModelSpec
from .pipeline import Pipeline
from .test_prefetch import FAST_DISK, GONE, ONE_SEAT, fill, prompt, with_a_prefix_on_disk
from .tiered import Tiered, Weather
from .timed import STATE, spec_of

LATE = 10**9
"""A deadline that nothing meets by itself."""
GROWING = ModelSpec(
    blocks=24, max_model_len=64, max_num_seqs=6, max_batch_tokens=32, admission=Admission.MAX_UTIL
)
SLOW_DISK = Weather(delay_us=lambda kind: 5000 if kind == MemoryOpKind.FETCH else 20)
COMPUTING = ModelSpec(blocks=128, max_batch_tokens=64, max_prefill_chunk=16)
Standing = tuple[Executor, int]
"""A runtime, and the request that stands where the test wants it."""


def run_until(ex: Tiered, kind: MemoryOpKind) -> None:
    """Steps until such a transfer is on its way."""
    while not any(op.kind == kind for op in ex.tiered.running):
        ex.step()


def admitted_to_wait(ex: Tiered, request: int, kind: MemoryOpKind) -> Standing:
    """The request has its place, and no row until such a transfer has ended."""
    run_until(ex, kind)
    assert ex.runtime.stats()[0].running == 1
    assert all(row.request != request for step in ex.steps for row in step.rows)
    return ex, request


def queued() -> Standing:
    ex = Executor([ModelSpec(max_num_seqs=1)])
    ex.accepted([1, 2, 3], max_new=20)
    request = ex.accepted([4, 5], deadline=LATE)
    ex.step()
    assert ex.runtime.stats()[0].waiting == 1
    return ex, request


def on_its_way() -> Standing:
    """Submitted, and not seen by any step."""
    ex = Executor()
    return ex, ex.accepted([1, 2], deadline=LATE)


def held() -> Standing:
    """For a prefix that another request computes."""
    ex = Executor([COMPUTING], Config(dedupe_steps=10))
    text = list(range(1, 42))
    ex.accepted(text)
    request = ex.accepted(text, deadline=LATE)
    ex.step()
    assert ex.runtime.stats()[0].dedupe_holds == 1
    return ex, request


def producing() -> Standing:
    """The other one of the two."""
    ex = Executor([COMPUTING], Config(dedupe_steps=10))
    text = list(range(1, 42))
    request = ex.accepted(text, deadline=LATE)
    ex.accepted(text)
    ex.step()
    assert ex.runtime.stats()[0].dedupe_holds == 1
    return ex, request


def prefilling() -> Standing:
    ex = Executor([ModelSpec(max_batch_tokens=8)])
    request = ex.accepted([1] * 40, deadline=LATE)
    ex.step()
    assert ex.outputs[request] == []
    return ex, request


def decoding() -> Standing:
    ex = Executor()
    request = ex.accepted([1, 2, 3], max_new=20, deadline=LATE)
    for _ in range(3):
        ex.step()
    assert len(ex.outputs[request]) == 3
    return ex, request


def last_preempted(ex: Executor) -> int:
    records, _, _ = ex.runtime.read_decisions(0, 1 << 14)
    return int(records[records["decision"] == Decision.PREEMPTED_MEMORY]["request_id"][-1])


def preempted() -> Standing:
    ex = Executor([GROWING], Config(decision_records=1 << 14))
    for i in range(8):
        ex.accepted([i + 1] * 12, max_new=24, deadline=LATE)
    while ex.runtime.stats()[0].preemptions == 0:
        ex.step()
    return ex, last_preempted(ex)


def swapped() -> Standing:
    ex = Tiered([GROWING], Config(host_blocks=64, decision_records=1 << 14))
    rng = random.Random(4)
    for _ in range(12):
        text = [rng.randint(1, 900) for _ in range(rng.randint(9, 20))]
        ex.accepted(text, max_new=24, deadline=LATE)
    while ex.runtime.stats()[0].swaps == 0:
        ex.step()
    return ex, last_preempted(ex)


def loading() -> Standing:
    """From the host, which takes its time."""
    slow = Weather(delay_us=lambda kind: 5000 if kind == MemoryOpKind.LOAD else 20)
    ex = Tiered([replace(GROWING, blocks=16)], Config(host_blocks=64), weather=slow)
    for seed in (1, 2, 3, 4, 1):
        rng = random.Random(seed)
        request = ex.accepted([rng.randint(1, 900) for _ in range(41)], max_new=2, deadline=LATE)
        if seed != 1 or len(ex.finished) == 0:
            ex.run()
    return admitted_to_wait(ex, request, MemoryOpKind.LOAD)


def shared() -> Elastic:
    spec = ModelSpec(min_slabs=1, max_slabs=10, weight_slabs=2, max_model_len=40)
    return Elastic([spec, replace(spec, weight_slabs=0)], Config(arena_slabs=14))


def asleep() -> Standing:
    ex = shared()
    request = ex.accepted([1] * 6, max_new=12, deadline=LATE)
    ex.step()
    ex.runtime.sleep(0)
    for _ in range(4):
        ex.step()
    assert ex.runtime.state(0) == ModelState.ASLEEP
    return ex, request


def falling_asleep() -> Standing:
    """Taken off the device, with a row of it in flight."""
    ex = shared()
    request = ex.accepted([1] * 6, max_new=12, deadline=LATE)
    ex.step()
    ex.step()
    ex.runtime.sleep(0)
    assert ex.runtime.state(0) == ModelState.DRAINING
    return ex, request


def draining() -> Standing:
    """Its model is to go, and lets it end first."""
    ex = shared()
    request = ex.accepted([1] * 6, max_new=12, deadline=LATE)
    ex.step()
    ex.remove(0, drains=True)
    assert ex.runtime.state(0) == ModelState.REMOVING
    return ex, request


def prefetched() -> Standing:
    """In the queue, while its prefix is on its way from the disk."""
    ex = with_a_prefix_on_disk(41, SLOW_DISK)
    request = ex.accepted(prompt(GONE, 41), max_new=2, deadline=LATE)
    run_until(ex, MemoryOpKind.FETCH)
    assert ex.runtime.stats()[0].waiting == 1
    return ex, request


def fetched() -> Standing:
    """Admitted, and waiting for the disk before the host can be asked."""
    ex = Tiered([ONE_SEAT], FAST_DISK, weather=SLOW_DISK)
    fill(ex, 41)
    request = ex.accepted(prompt(GONE, 41), max_new=2, deadline=LATE)
    return admitted_to_wait(ex, request, MemoryOpKind.FETCH)


def short_of_slabs() -> Standing:
    """At the head of a model for which slabs of another drain."""
    spec = ModelSpec(min_slabs=0, max_slabs=8, max_model_len=40)
    specs = [replace(spec, admission=Admission.MAX_UTIL), spec]
    ex = Elastic(specs, Config(arena_slabs=8, slab_blocks=2, slab_hysteresis_us=10**9, quantum_us=100))
    for _ in range(40):
        ex.accepted([1] * 8, max_new=8, deadline=LATE)
    for _ in range(6):
        ex.step()
    request = ex.accepted([1] * 20, model=1, max_new=12, deadline=LATE)
    for _ in range(2):
        ex.step()
    assert (ex.runtime.stats()[1].waiting, ex.owned(1)) == (1, 0)
    return ex, request


def best_effort() -> Standing:
    """Behind all classes: it cannot have its first token in time."""
    ex = Executor([spec_of(((3000, None),), max_batch_tokens=32)])
    ex.runtime.step_time(0).import_state(STATE)
    request = ex.accepted([1] * 900, max_new=2, deadline=LATE)
    ex.accepted([2] * 60, max_new=40)
    ex.step()
    assert ex.runtime.stats()[0].best_effort == 1
    assert all(row.request != request for row in ex.steps[0].rows)
    return ex, request


PLACES = [queued, on_its_way, held, producing, prefilling, decoding, preempted, swapped, loading,
          prefetched, fetched, asleep, falling_asleep, draining, short_of_slabs, best_effort]  # fmt: skip


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.DEADLINE])
@pytest.mark.parametrize("place", PLACES)
def test_a_request_ends_wherever_it_stands(place: Callable[[], Standing], reason: FinishReason) -> None:
    ex, request = place()
    text = list(ex.outputs[request])
    if reason == FinishReason.CANCELLED:
        assert ex.runtime.cancel(request)
    else:
        ex.now = LATE
    planned = ex.plan()
    ex._drain()
    assert ex.finished[request] == reason
    assert not ex.runtime.cancel(request), "once"
    ex.runtime.check_invariants()
    if isinstance(ex, Pipeline):
        while ex.in_flight:
            ex.commit(ex.in_flight.popleft())
    elif planned is not None:
        ex.commit(planned)
    ex.run()
    if isinstance(ex, Tiered):
        ex.settle()
    assert ex.outputs[request] == text
    assert all(s.active_blocks == 0 for s in ex.runtime.stats())
    ex.runtime.check_invariants()
    if place is draining:
        ex.step()
        assert ex.runtime.state(0) == ModelState.REMOVED
