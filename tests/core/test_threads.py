"""submit, cancel and set_tenant come from any thread while one owner steps; step and commit let others run."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest

from airi import _core

from .harness import ModelSpec, make_buffers


def runtime_of(spec: ModelSpec, max_queued: int = 1 << 20) -> tuple[_core.Runtime, _core.StepBuffers]:
    model = spec.build()
    rows = max(spec.max_num_seqs, spec.max_batch_tokens)
    buffers = make_buffers([model], rows=rows, tokens=rows, spare=0)
    config = _core.RuntimeConfig(
        arena_bytes=spec.blocks * 4096, slab_bytes=4096, hash_key=bytes(16), max_queued=max_queued
    )
    return _core.Runtime(config, [model], [buffers]), buffers


def drive(runtime: _core.Runtime, buffers: _core.StepBuffers, now: int) -> int:
    """One step and its commit; returns how many requests ended."""
    info = runtime.step(now)
    if info is not None:
        counts = (buffers.row_flags[: info.num_rows] & _core.ROW_SAMPLE).astype(np.int32)
        tokens = np.ones(int(counts.sum()), np.int32)
        runtime.commit(info.step_id, tokens, counts, np.zeros(info.num_rows, np.uint8), 1)
    return len(runtime.drain_events())


def test_requests_of_many_threads_all_end_once() -> None:
    runtime, buffers = runtime_of(ModelSpec(blocks=400, max_num_seqs=64, max_batch_tokens=256))
    threads, each = 4, 400
    accepted = [0] * threads

    def client(who: int) -> None:
        for i in range(each):
            request_id = who * each + i
            admit = runtime.submit(
                request_id=request_id,
                model=0,
                tenant=who,
                tokens=np.full(1 + i % 9, i % 5 + 1, np.int32),
                max_new_tokens=3,
                arrival_us=i,
            )
            accepted[who] += admit == _core.Admit.ACCEPTED
            if i % 7 == 0:
                runtime.cancel(request_id)
            if i % 50 == 0:
                runtime.set_tenant(who, 1.0 + i % 3)

    clients = [threading.Thread(target=client, args=(w,)) for w in range(threads)]
    for thread in clients:
        thread.start()
    ended = 0
    now = 0
    while any(t.is_alive() for t in clients) or runtime.has_work():
        ended += drive(runtime, buffers, now)
        now += 1
    for thread in clients:
        thread.join()
    ended += len(runtime.drain_events())
    assert accepted == [each] * threads
    assert ended == threads * each
    runtime.check_invariants()


def moves_during_calls(call: str) -> bool:
    """Whether another thread's Python runs while `call` does, in any of many calls.

    The switch interval is far above the test's length: unless the call itself gives the GIL back, the other
    thread cannot run, however often we try.
    """
    runtime, buffers = runtime_of(ModelSpec(blocks=4000, max_num_seqs=2000, max_batch_tokens=2000))
    for i in range(20_000):
        runtime.submit(request_id=i, model=0, tokens=np.ones(1, np.int32), max_new_tokens=50, arrival_us=0)
    stop = threading.Event()
    counter = [0]

    def count() -> None:
        while not stop.is_set():
            counter[0] += 1
            time.sleep(0)  # gives the GIL back at once

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    sys.setswitchinterval(1000.0)
    try:
        while runtime.has_work():
            at_start = counter[0]
            info = runtime.step(0)
            after_step = counter[0]
            assert info is not None
            counts = (buffers.row_flags[: info.num_rows] & _core.ROW_SAMPLE).astype(np.int32)
            tokens, status = np.ones(int(counts.sum()), np.int32), np.zeros(info.num_rows, np.uint8)
            before_commit = counter[0]
            runtime.commit(info.step_id, tokens, counts, status, 1)
            if {"step": after_step > at_start, "commit": counter[0] > before_commit}[call]:
                return True
        return False
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


@pytest.mark.parametrize("call", ["step", "commit"])
def test_other_threads_run_python_while_a_step_is_planned_and_committed(call: str) -> None:
    assert moves_during_calls(call)


def test_the_queue_limit_counts_what_waits_and_not_what_runs() -> None:
    runtime, buffers = runtime_of(ModelSpec(max_num_seqs=2, max_batch_tokens=8), max_queued=3)

    def submit(request_id: int) -> _core.Admit:
        return runtime.submit(
            request_id=request_id, model=0, tokens=np.ones(2, np.int32), max_new_tokens=5, arrival_us=0
        )

    assert [submit(i) for i in range(4)] == [_core.Admit.ACCEPTED] * 3 + [_core.Admit.QUEUE_FULL]
    drive(runtime, buffers, 0)
    assert [submit(i) for i in range(4, 7)] == [_core.Admit.ACCEPTED] * 2 + [_core.Admit.QUEUE_FULL]


def test_buffers_stay_alive_as_long_as_the_runtime_writes_into_them() -> None:
    runtime, buffers = runtime_of(ModelSpec())
    ids = buffers.request_ids
    del buffers
    runtime.submit(request_id=77, model=0, tokens=np.ones(2, np.int32), max_new_tokens=1, arrival_us=0)
    assert runtime.step(0) is not None
    assert ids[0] == 77


@pytest.mark.parametrize("name", ["request_ids", "slots", "query_start", "tokens", "positions", "deltas"])
def test_a_buffer_that_is_too_small_is_named(name: str) -> None:
    model = ModelSpec(max_num_seqs=8, max_batch_tokens=16).build()
    whole = make_buffers([model], rows=8, tokens=16, spare=0)
    arrays = {n: getattr(whole, n) for n in dir(whole) if not n.startswith("_")}
    arrays[name] = np.ascontiguousarray(arrays[name][:-1])
    with pytest.raises(ValueError, match=f"buffer {name} must hold at least"):
        _core.Runtime(
            _core.RuntimeConfig(arena_bytes=64 * 4096, slab_bytes=4096, hash_key=bytes(16)),
            [model],
            [_core.StepBuffers(**arrays)],
        )


def test_a_buffer_that_cannot_be_written_is_refused() -> None:
    model = ModelSpec().build()
    whole = make_buffers([model], rows=8, tokens=16, spare=0)
    arrays = {n: getattr(whole, n) for n in dir(whole) if not n.startswith("_")}
    arrays["slots"] = np.zeros(8, np.int32)
    arrays["slots"].setflags(write=False)
    with pytest.raises(TypeError, match="slots must be writable"):
        _core.StepBuffers(**arrays)
    arrays["slots"] = np.zeros(8, np.int64)
    with pytest.raises(TypeError, match=r"slots must be a C-contiguous int32 array, got int64 \[8\]"):
        _core.StepBuffers(**arrays)
