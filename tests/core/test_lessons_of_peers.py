"""Behaviours that have gone wrong in other engines, each told as what ours does."""

from __future__ import annotations

import pytest

from airi import _core
from airi._core import Admission, FinishReason

from .harness import Config, Executor, ModelSpec


def test_a_request_larger_than_the_cache_is_refused_at_once_and_blocks_nobody() -> None:
    ex = Executor([ModelSpec(blocks=4, block_size=4, max_model_len=100)])
    assert ex.submit([1] * 10, max_new=20)[1] == _core.Admit.NEVER_FITS
    small = ex.accepted([1] * 10, max_new=6)
    assert ex.run() == 6
    assert ex.finished[small] == FinishReason.LENGTH


@pytest.mark.parametrize("admission", list(Admission))
def test_an_engine_with_work_is_never_handed_an_empty_step(admission: Admission) -> None:
    """One block more or less than a request needs, one token of budget, every slot taken: steps go on."""
    for blocks in range(5, 9):
        for budget in (1, 2, 5):
            spec = ModelSpec(blocks=blocks, block_size=4, max_model_len=20, max_num_seqs=3,
                             max_batch_tokens=budget, admission=admission, watermark=0.5)  # fmt: skip
            ex = Executor([spec])
            for i in range(6):
                ex.accepted([i + 1] * 12, max_new=8)
            while ex.runtime.has_work():
                step = ex.step()
                assert step is not None
                assert step.info.num_tokens > 0
            assert len(ex.finished) == 6


def test_two_requests_of_equal_priority_never_evict_each_other_in_turn() -> None:
    """Memory for one and a half: one of them waits; progress is never undone twice over."""
    spec = ModelSpec(blocks=9, block_size=4, max_model_len=32, max_num_seqs=2, max_batch_tokens=32,
                     admission=Admission.MAX_UTIL, prefix_caching=False)  # fmt: skip
    ex = Executor([spec], Config(num_bands=2, max_preemptions=10))
    for i in range(2):
        ex.accepted([i + 1] * 8, max_new=20, band=1)
    ex.run()
    computed = sum(s.info.num_tokens for s in ex.steps)
    assert computed <= 2 * (8 + 20) + 2 * 28
    assert ex.runtime.stats()[0].preemptions <= 2


def test_running_and_waiting_requests_do_not_use_up_the_slots_of_each_other() -> None:
    """Heads that were passed over, cancelled or preempted hold no slot: admission goes on to the end."""
    spec = ModelSpec(blocks=12, block_size=4, max_model_len=48, max_num_seqs=3, max_batch_tokens=16,
                     admission=Admission.MAX_UTIL)  # fmt: skip
    ex = Executor([spec], Config(bypass_tokens=40))
    for i in range(50):
        request = ex.accepted([i % 9 + 1] * (1 + i % 25), max_new=1 + i % 20)
        if i % 5 == 0:
            ex.runtime.cancel(request)
        ex.step()
    ex.run()
    assert len(ex.finished) == 50
    again = [ex.accepted([7] * 2, max_new=2) for _ in range(3)]
    step = ex.step()
    assert step is not None
    assert {r.request for r in step.rows} == set(again), "all three slots are free again"


def test_blocks_are_taken_all_or_none() -> None:
    pool = _core.parts.BlockPool(3, 4)
    assert pool.take(4) is None
    assert (pool.num_free, pool.num_active) == (3, 0)
    assert pool.take(3) is not None


def test_a_name_that_is_both_an_adapter_and_a_salt_shares_nothing() -> None:
    chain = _core.parts.HashChain(bytes(16), b"", 4)
    adapter = chain.hashes([1, 2, 3, 4], [(_core.parts.ExtraKind.ADAPTER, 0, b"acme")])
    salt = chain.hashes([1, 2, 3, 4], [(_core.parts.ExtraKind.SALT, 0, b"acme")])
    assert adapter != salt


def test_a_busy_model_does_not_stall_its_neighbour_on_the_same_device() -> None:
    """Every model with work gets its turn within two quanta and one batch each, however long the other's queue."""
    ex = Executor([ModelSpec(max_num_seqs=2), ModelSpec(max_num_seqs=2)], Config(quantum_us=500))
    for _ in range(40):
        ex.accepted([1] * 8, max_new=8, model=0)
    for _ in range(3):
        ex.step()
    arrived = ex.now
    neighbour = ex.accepted([2] * 4, max_new=2, model=1)
    while neighbour not in ex.finished:
        ex.step()
    first = next(s.now for s in ex.steps if neighbour in {r.request for r in s.rows})
    assert first - arrived <= 2 * 500 + 200
    ex.run()
