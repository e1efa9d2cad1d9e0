"""A1, A2, and what NO_EVICT and MAX_UTIL promise."""

from __future__ import annotations

import random

import pytest

from airi._core import Admission

from .harness import Config, Executor, ModelSpec


def admitted(ex: Executor) -> list[int]:
    """Request ids in the order of their first dispatch."""
    order: list[int] = []
    for step in ex.steps:
        order += [r.request for r in step.rows if r.first and r.request not in order]
    return order


@pytest.mark.parametrize("seed", range(8))
def test_no_evict_never_preempts_among_equals(seed: int) -> None:
    rng = random.Random(seed)
    ex = Executor([ModelSpec(blocks=20, block_size=4, max_model_len=60, max_num_seqs=8, max_batch_tokens=24)])
    for _ in range(60):
        ex.accepted([rng.randint(1, 3) for _ in range(rng.randint(1, 30))], max_new=rng.randint(1, 30),
                    tenant=rng.randint(0, 2))  # fmt: skip
    ex.run()
    assert ex.runtime.stats()[0].preemptions == 0
    assert len(ex.finished) == 60


def test_max_util_runs_more_at_once_and_no_evict_does_not() -> None:
    widths = {}
    for policy in Admission:
        spec = ModelSpec(
            blocks=16, block_size=4, max_model_len=64, max_num_seqs=8, max_batch_tokens=32, admission=policy
        )
        ex = Executor([spec])
        for i in range(8):
            ex.accepted([i + 1] * 4, max_new=28)
        ex.step()
        step = ex.step()
        assert step is not None
        widths[policy] = step.info.num_rows
        ex.run()
        assert len(ex.finished) == 8
    assert widths[Admission.NO_EVICT] == 2
    assert widths[Admission.MAX_UTIL] == 8


def test_the_watermark_is_left_free_at_admissions_and_used_by_what_runs() -> None:
    spec = ModelSpec(blocks=20, block_size=4, max_num_seqs=8, max_batch_tokens=64, max_model_len=64,
                     admission=Admission.MAX_UTIL, watermark=0.25)  # fmt: skip
    ex = Executor([spec])
    for i in range(4):
        ex.accepted([i + 1] * 20, max_new=10)
    ex.step()
    stats = ex.runtime.stats()[0]
    assert (stats.running, stats.waiting) == (3, 1)
    lone = Executor([ModelSpec(blocks=4, block_size=4, admission=Admission.MAX_UTIL, watermark=0.9)])
    lone.accepted([1] * 10, max_new=4)
    assert lone.run() == 4, "the watermark never keeps out the only request"


@pytest.mark.parametrize("seed", range(8))
def test_without_bypass_requests_are_admitted_in_strict_order(seed: int) -> None:
    """A2: a head that does not fit holds up smaller ones behind it."""
    rng = random.Random(seed)
    ex = Executor([ModelSpec(blocks=12, block_size=4, max_model_len=48, max_num_seqs=6, max_batch_tokens=32)])
    requests = []
    for i in range(40):
        arrival = rng.randint(0, 20)
        size = rng.choice([2, 30])
        requests.append((arrival, ex.accepted([i + 1] * size, max_new=rng.randint(1, 10), arrival=arrival)))
    ex.run()
    assert admitted(ex) == [request for _, request in sorted(requests)]


@pytest.mark.parametrize("beta", [0, 50, 200])
def test_what_passes_a_head_that_does_not_fit_stays_within_the_allowance(beta: int) -> None:
    """A1: with an endless supply of small requests the head still starts, after at most beta service."""
    spec = ModelSpec(blocks=16, block_size=4, max_model_len=64, max_num_seqs=8, max_batch_tokens=64)
    ex = Executor([spec], Config(bypass_tokens=beta))
    ex.accepted([1] * 4, max_new=40, arrival=0)
    ex.step()
    head = ex.accepted([2] * 30, max_new=30, arrival=1)
    passed = 0
    for i in range(400):
        ex.accepted([3 + i % 50] * 4, max_new=8, arrival=2 + i)
        step = ex.step()
        assert step is not None
        first = [r.request for r in step.rows if r.first]
        if head in first:
            break
        passed += sum((4 - r.start) + 2 * 8 for r in step.rows if r.first)
    else:
        raise AssertionError("the head never started")
    assert passed <= beta
    if beta:
        assert passed > 0
    ex.run()


def test_a_full_prompt_is_promised_so_that_two_long_prefills_cannot_starve_each_other() -> None:
    """Neither prefill is ever out of blocks half way, although each step computes a small part of one."""
    spec = ModelSpec(blocks=20, block_size=4, max_model_len=80, max_num_seqs=4, max_batch_tokens=8,
                     admission=Admission.MAX_UTIL)  # fmt: skip
    ex = Executor([spec])
    for i in range(4):
        ex.accepted([i + 1] * 44, max_new=4)
    ex.run()
    assert len(ex.finished) == 4
    assert ex.runtime.stats()[0].preemptions == 0


def time_to_finish(policy: Admission, *, blocks: int, seed: int) -> float:
    """Virtual time of a batch of requests: a step costs 1 + 0.02 per row + 0.01 per token."""
    rng = random.Random(seed)
    spec = ModelSpec(blocks=blocks, block_size=16, max_model_len=1024, max_num_seqs=64, max_batch_tokens=512,
                     admission=policy, watermark=0.02)  # fmt: skip
    ex = Executor([spec])
    for i in range(150):
        prompt = [i + 1, *(rng.randint(1, 900) for _ in range(rng.randint(40, 160)))]
        ex.accepted(prompt, max_new=rng.randint(20, 240), stop=(0,))
    clock = 0.0
    while ex.runtime.has_work():
        step = ex.plan()
        assert step is not None
        ex.commit(step)
        clock += 1 + 0.02 * step.info.num_rows + 0.01 * step.info.num_tokens
    return clock


@pytest.mark.parametrize("seed", range(2))
def test_max_util_under_twofold_oversubscription_keeps_nine_tenths_of_the_throughput(seed: int) -> None:
    """R5: memory for half of the 64 slots' mean final lengths."""
    half = 64 * (100 + 130) // 16 // 2
    careful = time_to_finish(Admission.NO_EVICT, blocks=half, seed=seed)
    eager = time_to_finish(Admission.MAX_UTIL, blocks=half, seed=seed)
    assert careful / eager >= 0.9, (careful, eager)
