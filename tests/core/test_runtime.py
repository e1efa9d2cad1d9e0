"""The runtime end to end: what a runner sees and what becomes of requests."""

from __future__ import annotations

import numpy as np
import pytest

from airi import _core

from .harness import Config, Executor, ModelSpec


def test_one_request_runs_from_prompt_to_its_limit() -> None:
    ex = Executor()
    request = ex.accepted(list(range(10, 20)), max_new=5)
    steps = ex.run()
    assert steps == 5
    assert ex.finished[request] == _core.FinishReason.LENGTH
    assert len(ex.outputs[request]) == 5
    first = ex.steps[0].rows[0]
    assert (first.first, first.samples, first.start, first.count) == (True, True, 0, 10)
    assert not ex.steps[1].rows[0].first


def test_a_stop_id_ends_a_request_from_its_minimum_length_on() -> None:
    ex = Executor(rule=lambda request, draw, last: 0)
    early = ex.accepted([5, 6, 7], max_new=6, stop=(0,))
    late = ex.accepted([5, 6, 7], max_new=6, stop=(0, 9), min_new=3)
    ignored = ex.accepted([5, 6, 7], max_new=6)
    ex.run()
    assert [len(ex.outputs[r]) for r in (early, late, ignored)] == [1, 3, 6]
    assert ex.finished[early] == ex.finished[late] == _core.FinishReason.STOP
    assert ex.finished[ignored] == _core.FinishReason.LENGTH


def test_left_out_max_tokens_means_what_still_fits_the_window_and_the_arena() -> None:
    window = Executor([ModelSpec(blocks=64, max_model_len=20)])
    request = window.accepted([1] * 8, max_new=None)
    window.run()
    assert len(window.outputs[request]) == 12
    arena = Executor([ModelSpec(blocks=4, block_size=4, max_model_len=64)])
    request = arena.accepted([1] * 8, max_new=None)
    arena.run()
    assert len(arena.outputs[request]) == 8


def test_what_can_never_run_is_refused_at_submit() -> None:
    ex = Executor([ModelSpec(blocks=4, block_size=4, max_model_len=32)], Config(max_queued=2))
    assert ex.submit([1] * 32, max_new=None)[1] == _core.Admit.TOO_LONG
    assert ex.submit([1] * 30, max_new=3)[1] == _core.Admit.TOO_LONG
    assert ex.submit([1] * 12, max_new=5)[1] == _core.Admit.NEVER_FITS
    assert ex.submit([1] * 17, max_new=None)[1] == _core.Admit.NEVER_FITS
    assert ex.submit([1] * 12, max_new=4, request_id=7)[1] == _core.Admit.ACCEPTED
    assert ex.submit([1] * 4, request_id=7)[1] == _core.Admit.DUPLICATE_ID
    ex.accepted([1] * 4, request_id=8)
    assert ex.submit([1] * 4, request_id=9)[1] == _core.Admit.QUEUE_FULL


def test_an_id_may_be_used_again_after_its_request_ended() -> None:
    ex = Executor()
    ex.accepted([1, 2], max_new=1, request_id=3)
    ex.run()
    ex.finished.clear()
    ex.accepted([1, 2], max_new=1, request_id=3)
    ex.run()
    assert ex.finished == {3: _core.FinishReason.LENGTH}


def test_a_shared_prefix_is_computed_once() -> None:
    ex = Executor([ModelSpec(block_size=4)])
    prompt = list(range(100, 112))
    ex.accepted(prompt, max_new=1)
    ex.run()
    second = ex.accepted([*prompt, 7], max_new=1)
    ex.run()
    assert ex.steps[-1].rows[0].start == 12
    assert ex.events[second]["num_cached_tokens"] == 12
    same = ex.accepted(prompt, max_new=1)
    ex.run()
    assert ex.events[same]["num_cached_tokens"] == 8, "at least one token is computed"
    every = ex.accepted(prompt, max_new=1, compute_all=True)
    ex.run()
    assert ex.events[every]["num_cached_tokens"] == 0
    stats = ex.runtime.stats()[0]
    assert (stats.query_tokens, stats.hit_tokens) == (12 + 13 + 12 + 12, 12 + 8)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": 1}, ValueError, "model must be"),
        ({"tokens": []}, ValueError, r"len\(tokens\) must be at least 1"),
        ({"tokens": [3, -4]}, ValueError, "tokens must not be negative"),
        ({"max_new": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ({"band": 1}, ValueError, "band must be"),
        ({"salts": ((-1, b"x"),)}, ValueError, "salt offset must be at least 0, got -1"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(change: dict[str, object], error: type, text: str) -> None:
    ex = Executor()
    arguments: dict[str, object] = {"tokens": [1, 2], **change}
    with pytest.raises(error, match=text):
        ex.submit(**arguments)  # type: ignore[arg-type]
    assert not ex.runtime.has_work()


def test_a_wrong_array_is_named_without_its_content() -> None:
    ex = Executor()
    with pytest.raises(TypeError, match=r"tokens must be a C-contiguous int32 array, got int64 \[2\]"):
        ex.runtime.submit(request_id=0, model=0, tokens=np.array([123456, 2]), max_new_tokens=1, arrival_us=0)
    with pytest.raises(TypeError, match="C-contiguous"):
        ex.runtime.submit(
            request_id=0,
            model=0,
            tokens=np.arange(8, dtype=np.int32)[::2],
            max_new_tokens=1,
            arrival_us=0,
        )


def test_a_commit_that_does_not_match_its_step_changes_nothing() -> None:
    ex = Executor()
    ex.accepted([1, 2, 3], max_new=2)
    step = ex.plan()
    assert step is not None
    token, one, ok = np.array([5], np.int32), np.array([1], np.int32), np.zeros(1, np.uint8)
    none = np.zeros(0, np.int32)
    zero = np.zeros(1, np.int32)
    bad = np.array([9], np.uint8)
    with pytest.raises(ValueError, match="step_id must be"):
        ex.runtime.commit(step.info.step_id + 1, token, one, ok, 1)
    with pytest.raises(ValueError, match="row 0 must bring 1 tokens, got 0"):
        ex.runtime.commit(step.info.step_id, none, zero, ok, 1)
    with pytest.raises(ValueError, match="status 9"):
        ex.runtime.commit(step.info.step_id, token, one, bad, 1)
    with pytest.raises(ValueError, match=r"sum\(counts\) = 1, got 0"):
        ex.runtime.commit(step.info.step_id, none, one, ok, 1)
    with pytest.raises(ValueError, match="device_us"):
        ex.runtime.commit(step.info.step_id, token, one, ok, -1)
    with pytest.raises(ValueError, match="must be committed before"):
        ex.runtime.step(0)
    ex.runtime.check_invariants()
    ex.commit(step)
    ex.run()
    assert ex.finished == {0: _core.FinishReason.LENGTH}
