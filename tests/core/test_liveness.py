"""Every accepted request ends; nothing leaks, wherever it is cut off; the same inputs give the same plans."""

from __future__ import annotations

import random

import numpy as np
import pytest

from airi import _core
from airi._core import Admission, FinishReason

from .harness import Config, Executor, ModelSpec, make_buffers

TIGHT = [
    ModelSpec(blocks=14, block_size=4, max_model_len=50, max_num_seqs=5, max_batch_tokens=12,
              admission=Admission.MAX_UTIL, watermark=0.1),
    ModelSpec(blocks=10, block_size=2, max_model_len=20, max_num_seqs=3, max_batch_tokens=5),
]  # fmt: skip
BANDS = Config(num_bands=3, aging_us=2000, bypass_tokens=60, max_preemptions=2, quantum_us=300)


def submit_some(ex: Executor, rng: random.Random, count: int) -> None:
    for _ in range(count):
        model = rng.randint(0, 1)
        size = rng.randint(1, 30 if model == 0 else 10)
        ex.submit(
            [rng.randint(1, 2) for _ in range(size)],
            model=model,
            tenant=rng.randint(0, 3),
            band=rng.randint(0, 2),
            max_new=rng.randint(1, 15 if model == 0 else 8),
            stop=(3,),
        )


@pytest.mark.parametrize("seed", range(10))
def test_every_accepted_request_finishes(seed: int) -> None:
    rng = random.Random(seed)
    ex = Executor(TIGHT, BANDS)
    for _ in range(60):
        submit_some(ex, rng, rng.randint(0, 3))
        ex.step()
    ex.run(limit=20_000)
    assert set(ex.finished) == set(ex.outputs)
    assert set(ex.finished.values()) <= {FinishReason.STOP, FinishReason.LENGTH}
    assert [s.active_blocks for s in ex.runtime.stats()] == [0, 0]


def one_life(at: int, how: str) -> Executor:
    """A request among others, ended `at` steps after its submission in the way `how`."""
    ex = Executor([ModelSpec(blocks=16, block_size=4, max_model_len=60, max_num_seqs=3, max_batch_tokens=8,
                             admission=Admission.MAX_UTIL)])  # fmt: skip
    for i in range(4):
        ex.accepted([i + 1] * 14, max_new=12)
    target = ex.accepted([1] * 14 + [9] * 10, max_new=12, deadline=100 * at if how == "deadline" else None)
    for i in range(at + 1):
        if how == "cancel" and i == at:
            assert ex.runtime.cancel(target) == (target not in ex.finished)
        step = ex.plan()
        if step is None:
            break
        failing = how in {"nan", "fail"} and i >= at and target in {r.request for r in step.rows}
        reason = _core.RowStatus.NAN if how == "nan" else _core.RowStatus.FAILED
        ex.commit(step, status={target: reason} if failing else None)
        ex.runtime.check_invariants()
    if how in {"nan", "fail"} and target not in ex.finished:
        while target not in ex.finished:
            step = ex.plan()
            assert step is not None
            failing = target in {r.request for r in step.rows}
            ex.commit(step, status={target: _core.RowStatus.FAILED} if failing else None)
    return ex


@pytest.mark.parametrize("how", ["cancel", "deadline", "nan", "fail"])
def test_ending_a_request_at_any_point_returns_every_block(how: str) -> None:
    """Waiting, in its first chunk, between chunks, decoding, preempted, or already over."""
    reasons = set()
    for at in range(60):
        ex = one_life(at, how)
        ex.run()
        ex.runtime.check_invariants()
        stats = ex.runtime.stats()[0]
        assert stats.active_blocks == 0
        assert stats.free_blocks + stats.cached_blocks == stats.capacity
        assert len(ex.finished) == 5
        reasons.add(ex.finished[4])
    expected = {
        "cancel": FinishReason.CANCELLED,
        "deadline": FinishReason.DEADLINE,
        "nan": FinishReason.NAN,
        "fail": FinishReason.FAILED,
    }
    assert expected[how] in reasons


def test_cancel_frees_its_blocks_within_one_step() -> None:
    ex = Executor()
    request = ex.accepted([1] * 10, max_new=20)
    other = ex.accepted([2] * 3, max_new=20)
    ex.step()
    held = ex.runtime.stats()[0].active_blocks
    assert ex.runtime.cancel(request)
    assert ex.runtime.stats()[0].active_blocks == held, "another thread never touches the owner's state"
    step = ex.step()
    assert step is not None
    assert [r.request for r in step.rows] == [other]
    assert ex.runtime.stats()[0].active_blocks == 1
    assert ex.finished[request] == FinishReason.CANCELLED
    assert not ex.runtime.cancel(request), "an ended request is not live"


def test_a_cancel_meant_for_an_ended_request_never_hits_the_next_of_the_same_id() -> None:
    ex = Executor()
    ex.accepted([1] * 3, max_new=1, request_id=5)
    step = ex.plan()
    assert step is not None
    assert ex.runtime.cancel(5), "still live while its step is not committed"
    ex.commit(step)
    ex.finished.clear()
    ex.accepted([1] * 3, max_new=2, request_id=5)
    ex.run()
    assert ex.finished[5] == FinishReason.LENGTH


def test_a_request_that_waits_past_its_deadline_ends_without_having_run() -> None:
    ex = Executor([ModelSpec(max_num_seqs=1)])
    ex.accepted([1] * 3, max_new=30)
    late = ex.accepted([2] * 3, max_new=3, deadline=500)
    ex.run()
    assert ex.finished[late] == FinishReason.DEADLINE
    assert ex.outputs[late] == []
    assert next(s.now for s in ex.steps if s.now >= 500) == 500


def record(seed: int) -> list[tuple[object, ...]]:
    """Everything that a run shows: rows, deltas, flags, ends."""
    rng = random.Random(seed)
    ex = Executor(TIGHT, BANDS)
    for tick in range(150):
        submit_some(ex, rng, rng.randint(0, 2))
        if tick % 11 == 3:
            ex.runtime.cancel(rng.randint(0, ex.next_id))
        if tick % 17 == 5:
            ex.runtime.set_tenant(rng.randint(0, 3), rng.choice([0.5, 2.0]))
        ex.step(device_us=rng.randint(1, 300))
    ex.run()
    return [(s.info.step_id, s.info.model, s.now, [vars(r) for r in s.rows], s.deltas) for s in ex.steps] + [
        tuple(sorted(ex.finished.items()))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_inputs_give_the_same_plans(seed: int) -> None:
    assert record(seed) == record(seed)


def test_buffers_hold_the_same_bytes_on_replay_and_nothing_is_written_past_the_counts() -> None:
    def run() -> list[bytes]:
        spec = ModelSpec()
        model = spec.build()
        buffers = make_buffers([model], rows=8, tokens=16, spare=0)
        arrays = {name: getattr(buffers, name) for name in (
            "request_ids", "slots", "query_start", "seq_lens", "row_flags", "draw_index", "tokens", "positions",
            "deltas")}  # fmt: skip
        runtime = _core.Runtime(
            _core.RuntimeConfig(arena_bytes=64 * 4096, slab_bytes=4096, hash_key=bytes(16)),
            [model],
            [buffers],
        )
        for i in range(6):
            runtime.submit(
                request_id=i, model=0, tokens=np.full(5 + i, i + 1, np.int32), max_new_tokens=4, arrival_us=i
            )
        seen = []
        while runtime.has_work():
            for array in arrays.values():
                array[:] = 0x55
            arrays["query_start"][0] = 0
            info = runtime.step(0)
            assert info is not None
            for name in ("request_ids", "slots", "seq_lens", "row_flags", "draw_index"):
                assert (arrays[name][info.num_rows :] == 0x55).all()
            assert (arrays["query_start"][info.num_rows + 1 :] == 0x55).all()
            assert (arrays["tokens"][info.num_tokens :] == 0x55).all()
            assert (arrays["deltas"][info.num_deltas :] == 0x55).all()
            seen.append(b"".join(a.tobytes() for a in arrays.values()))
            counts = (arrays["row_flags"][: info.num_rows] & _core.ROW_SAMPLE).astype(np.int32)
            runtime.commit(
                info.step_id,
                np.ones(int(counts.sum()), np.int32),
                counts,
                np.zeros(info.num_rows, np.uint8),
                1,
            )
        return seen

    first = run()
    assert len(first) > 4
    assert first == run()


def test_buffer_sets_are_used_round_robin_by_step_id() -> None:
    ex = Executor()
    ex.accepted([1, 2], max_new=6)
    ex.run()
    assert [(s.info.step_id, s.info.buffer) for s in ex.steps] == [(i, i % 2) for i in range(6)]


def test_a_clock_that_goes_back_changes_nothing() -> None:
    ex = Executor()
    request = ex.accepted([1] * 3, max_new=3, deadline=10_000)
    ex.now = 5_000
    ex.step()
    ex.now = 0
    ex.run()
    assert ex.finished[request] == FinishReason.LENGTH
