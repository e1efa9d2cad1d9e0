"""Decision records: what a scheduler decided about each request, and why, against what its steps show."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from airi._core import Admission, Admit, Decision

from .harness import Config, Executor, ModelSpec

RECORDS = Config(decision_records=1 << 16)
QUEUED = {d for d in Decision if d.name.startswith("QUEUED")}
PREEMPTED = {d for d in Decision if d.name.startswith("PREEMPTED")}


def records(ex: Executor) -> npt.NDArray[np.void]:
    found, _, missed = ex.runtime.read_decisions(0, 1 << 16)
    assert missed == 0
    return found


def story(ex: Executor, request: int) -> list[tuple[Decision, int, int]]:
    """What became of one request: decisions with their columns a and b."""
    return [
        (Decision(int(r["decision"])), int(r["a"]), int(r["b"]))
        for r in records(ex)
        if r["request_id"] == request
    ]


def busy(seed: int, **config: int) -> Executor:
    """More than fits, of two classes and three tenants; run to the end, some of it cancelled."""
    rng = random.Random(seed)
    spec = ModelSpec(
        blocks=20, max_model_len=60, max_num_seqs=5, max_batch_tokens=16,
        admission=rng.choice([Admission.MAX_UTIL, Admission.NO_EVICT]),
    )  # fmt: skip
    ex = Executor([spec], Config(decision_records=1 << 16, num_bands=2, **config))
    for i in range(30):
        prompt = [rng.randint(1, 3) for _ in range(rng.randint(1, 30))]
        ex.accepted(prompt, max_new=rng.randint(1, 25), tenant=i % 3, band=i % 2, stop=(5,))
        ex.step()
        if rng.random() < 0.1:
            ex.runtime.cancel(rng.randint(0, i))
    ex.run()
    return ex


@pytest.mark.parametrize("gap", [None, 40])
@pytest.mark.parametrize("seed", range(6))
def test_records_tell_what_the_steps_show(seed: int, gap: int | None) -> None:
    ex = busy(seed, fairness_gap_tokens=gap) if gap else busy(seed)
    found = records(ex)
    of = {d: found[found["decision"] == d] for d in Decision}
    admitted = [(s.now, r.request, r.start) for s in ex.steps for r in s.rows if r.first]
    assert of[Decision.ADMITTED][["at_us", "request_id", "a"]].tolist() == admitted
    chunks = [(s.now, r.request, r.count) for s in ex.steps for r in s.rows if not r.samples]
    assert sorted(of[Decision.CHUNKED][["at_us", "request_id", "a"]].tolist()) == sorted(chunks)
    preempted = sum(len(of[d]) for d in PREEMPTED)
    assert preempted == ex.runtime.stats()[0].preemptions
    for request, reason in ex.finished.items():
        last, generated, cached = story(ex, request)[-1]
        assert last == Decision(Decision.FINISHED_STOP + reason)
        assert generated == len(ex.outputs[request])
        assert cached == ex.events[request]["num_cached_tokens"]


@pytest.mark.parametrize("seed", range(6))
def test_every_request_that_waits_says_why_and_says_it_once(seed: int) -> None:
    ex = busy(seed, fairness_gap_tokens=60)
    first_seen = {r.request: s.now for s in reversed(ex.steps) for r in s.rows if r.first}
    submitted = {
        int(r["request_id"]): int(r["at_us"]) for r in records(ex) if r["decision"] == Decision.SUBMITTED
    }
    reasons = Counter[Decision]()
    for request, at in submitted.items():
        names = [decision for decision, _, _ in story(ex, request)]
        assert names[0] == Decision.SUBMITTED
        waited = first_seen.get(request, ex.now) > at
        assert (names[1] in QUEUED) >= waited
        for one, then in itertools.pairwise(names):
            assert one != then or one == Decision.CHUNKED
            assert then != Decision.ADMITTED or one in {Decision.SUBMITTED} | QUEUED | PREEMPTED
            reasons[then] += then in QUEUED
    assert len(reasons) >= 3


def test_a_head_that_waits_for_blocks_says_how_many_it_needs_and_could_have() -> None:
    ex = Executor([ModelSpec(blocks=10, block_size=4)], RECORDS)
    ex.accepted([1] * 8, max_new=12)  # five blocks
    ex.step()
    held_back = ex.accepted([2] * 20, max_new=8)  # seven
    ex.step()
    ex.step()
    assert story(ex, held_back) == [(Decision.SUBMITTED, 20, 8), (Decision.QUEUED_BLOCKS, 7, 5)]
    ex.run()
    assert [d for d, _, _ in story(ex, held_back)][2:] == [
        Decision.ADMITTED, Decision.CHUNKED, Decision.FINISHED_LENGTH,
    ]  # fmt: skip


def test_a_head_without_a_slot_or_budget_says_so_and_what_stands_behind_waits_for_its_turn() -> None:
    ex = Executor([ModelSpec(max_num_seqs=2, max_batch_tokens=8)], RECORDS)
    first, second, third, fourth = (ex.accepted([i + 1] * 8, max_new=3, tenant=i) for i in range(4))
    ex.step()
    assert story(ex, first)[1:] == [(Decision.ADMITTED, 0, 3)]
    assert story(ex, second)[1:] == [(Decision.QUEUED_TURN, first, 2), (Decision.QUEUED_BUDGET, 8, 0)]
    ex.step()
    assert story(ex, second)[-2:] == [(Decision.ADMITTED, 0, 3), (Decision.CHUNKED, 7, 1)]
    assert story(ex, third)[-1] == (Decision.QUEUED_SLOTS, 2, 0)
    assert story(ex, fourth)[1:] == [(Decision.QUEUED_TURN, first, 4)]


def test_a_preempted_request_names_the_one_it_made_way_for() -> None:
    ex = Executor([ModelSpec(max_num_seqs=1)], Config(decision_records=64, num_bands=2))
    batch = ex.accepted([1] * 8, max_new=8, band=1)
    ex.step()
    ex.step()
    urgent = ex.accepted([2] * 8, max_new=2, band=0)
    ex.step()
    assert story(ex, batch)[-2:] == [(Decision.PREEMPTED_URGENT, urgent, 9), (Decision.QUEUED_SLOTS, 1, 0)]
    ex.run()
    assert story(ex, batch)[-2][0] == Decision.ADMITTED


def test_a_head_that_loses_its_place_at_the_front_waits_for_its_turn_again() -> None:
    ex = Executor([ModelSpec(max_num_seqs=1)], Config(decision_records=64, num_bands=2))
    ex.accepted([1] * 8, max_new=20, band=0)
    ex.step()
    head = ex.accepted([2] * 8, band=1)
    ex.step()
    ahead = ex.accepted([3] * 8, band=0)
    ex.step()
    assert story(ex, head)[1:] == [(Decision.QUEUED_SLOTS, 1, 0), (Decision.QUEUED_TURN, ahead, 2)]
    ex.runtime.cancel(ahead)
    ex.step()
    assert story(ex, head)[-1] == (Decision.QUEUED_SLOTS, 1, 0)


def test_what_is_refused_at_submit_is_recorded_with_the_numbers() -> None:
    ex = Executor(
        [ModelSpec(blocks=4, block_size=4, max_model_len=40)], Config(decision_records=64, max_queued=2)
    )
    assert ex.submit([1] * 30, max_new=20, request_id=70)[1] == Admit.TOO_LONG
    assert ex.submit([1] * 20, max_new=4, request_id=71)[1] == Admit.NEVER_FITS
    ex.accepted([1], request_id=72)
    assert ex.submit([1], request_id=72)[1] == Admit.DUPLICATE_ID
    ex.accepted([1], request_id=73)
    assert ex.submit([1], request_id=74)[1] == Admit.QUEUE_FULL
    ex.step()
    assert story(ex, 70) == [(Decision.REFUSED_TOO_LONG, 50, 40)]
    assert story(ex, 71) == [(Decision.REFUSED_NEVER_FITS, 6, 4)]
    assert (Decision.REFUSED_DUPLICATE_ID, 0, 0) in story(ex, 72)
    assert story(ex, 74) == [(Decision.REFUSED_QUEUE_FULL, 2, 0)]


@pytest.mark.parametrize("seed", range(3))
def test_recording_changes_no_plan(seed: int) -> None:
    plain, recorded = ([(s.now, s.rows, s.deltas) for s in busy_with(seed, n).steps] for n in (0, 1 << 10))
    assert plain == recorded


def busy_with(seed: int, num_records: int) -> Executor:
    rng = random.Random(seed)
    ex = Executor(
        [ModelSpec(blocks=20, max_model_len=60, max_num_seqs=4, admission=Admission.MAX_UTIL)],
        Config(decision_records=num_records, kv_event_records=num_records, steps_ahead=0),
    )
    for i in range(20):
        prompt = [rng.randint(1, 3) for _ in range(rng.randint(1, 30))]
        ex.accepted(prompt, max_new=rng.randint(1, 25), tenant=i % 3)
    ex.run()
    return ex
