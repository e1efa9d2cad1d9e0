"""What models that come, sleep, wake and go leave behind for clients, followers of events and other models."""

from __future__ import annotations

import pytest

from airi import _core
from airi._core import Admit, FinishReason, ModelState

from .elastic import Elastic
from .harness import Config, Executor, ModelSpec
from .pipeline import Pipeline
from .test_kv_events import Replica, held


def spec(low: int = 0, high: int = 12, **kwargs: object) -> ModelSpec:
    return ModelSpec(min_slabs=low, max_slabs=high, max_num_seqs=6, max_model_len=40, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("fixed", [True, False])
def test_who_follows_the_events_learns_that_a_models_cache_is_gone(fixed: bool) -> None:  # noqa: FBT001
    gone = ModelSpec(blocks=12) if fixed else spec(1, 12)
    ex = Executor([ModelSpec(blocks=12), gone], Config(arena_slabs=24, kv_event_records=256))
    for model in (0, 1):
        ex.accepted([1, 2, 3, 4, 5, 6, 7, 8, 9], model=model)
    ex.run()
    replica = Replica()
    replica.read(ex.runtime)
    assert replica.parents[1]
    ex.runtime.remove_model(1, drains=False)
    assert replica.read(ex.runtime) == 0
    assert replica.parents == {0: held(ex.runtime, 0)[0], 1: {}}
    assert replica.parents[0]


def test_a_cancel_that_the_removal_of_a_model_reads_ends_its_request_there_and_then() -> None:
    ex = Executor([spec(1, 6), spec(1, 6)], Config(arena_slabs=12))
    request = ex.accepted([1, 2, 3])
    ex.runtime.cancel(request)
    ex.runtime.remove_model(1, drains=True)
    assert [int(e["request_id"]) for e in ex.runtime.drain_events()] == [request]
    assert not ex.runtime.has_work()
    assert ex.submit([1], request_id=request)[1] == Admit.ACCEPTED, "the id is free"


@pytest.mark.parametrize("drains", [False, True])
def test_requests_of_a_sleeping_model_are_cancelled_when_it_is_removed(drains: bool) -> None:  # noqa: FBT001
    """They could only end awake; waiting for that would keep a model that nobody can ask for."""
    ex = Elastic([spec(1, 6), spec(1, 6)], Config(arena_slabs=12))
    ex.runtime.sleep(1)
    while ex.runtime.state(1) != ModelState.ASLEEP:
        ex.move_weights()
    request = ex.accepted([1, 2, 3], model=1)
    ex.runtime.remove_model(1, drains=drains)
    assert ex.runtime.state(1) == ModelState.REMOVED
    [event] = ex.runtime.drain_events()
    assert (event["request_id"], event["reason"]) == (request, FinishReason.CANCELLED)


def test_a_cancel_that_a_refused_model_made_be_read_ends_its_request_there_and_then() -> None:
    ex = Executor([spec(1, 6)], Config(arena_slabs=12))
    request = ex.accepted([1, 2, 3])
    ex.runtime.cancel(request)
    with pytest.raises(ValueError, match="model 1 wants 12 slabs"):
        ex.runtime.add_model(spec(12, 12).build())
    assert [int(e["request_id"]) for e in ex.runtime.drain_events()] == [request]
    assert not ex.runtime.has_work()


def test_a_removal_that_is_refused_changes_nothing() -> None:
    ex = Executor([spec(1, 6)], Config(arena_slabs=12))
    request = ex.accepted([1, 2, 3])
    ex.runtime.cancel(request)
    with pytest.raises(ValueError, match="model must be a model of this runtime, got 3"):
        ex.runtime.remove_model(3, drains=False)
    assert ex.runtime.has_work()
    assert len(ex.runtime.drain_events()) == 0
    ex.run()


def test_requests_that_do_not_fit_beside_a_model_that_comes_are_ended() -> None:
    """They might wait for ever: what their model can count on has become less."""
    ex = Executor([spec(1, 12)], Config(arena_slabs=12, steps_ahead=0))
    read = ex.accepted([1] * 20, max_new=20)
    ex.step()
    on_its_way = ex.accepted([2] * 20, max_new=20)
    small = ex.accepted([3] * 4, max_new=4)
    ex.runtime.add_model(spec(4, 8).build())
    ex.run()
    assert ex.finished[read] == ex.finished[on_its_way] == FinishReason.NEVER_FITS
    assert ex.finished[small] == FinishReason.LENGTH
    assert ex.submit([1] * 20, max_new=20)[1] == Admit.NEVER_FITS


def test_quotas_do_not_end_what_a_model_drains() -> None:
    ex = Executor([spec(4, 12), spec(1, 6)], Config(arena_slabs=14))
    request = ex.accepted([1] * 8, max_new=8)
    ex.step()
    ex.runtime.remove_model(0, drains=True)
    ex.runtime.set_kv_quota(1, 1, 2)
    ex.run()
    assert ex.finished[request] == FinishReason.LENGTH


def test_a_model_that_is_refused_leaves_the_books_as_they_were() -> None:
    """The next model is given slabs by targets that are its own."""
    ex = Elastic([spec(1, 6), spec(1, 6)], Config(arena_slabs=5))
    for _ in range(3):
        with pytest.raises(ValueError, match="gets no slab of the arena"):
            ex.runtime.add_model(spec(0, 6, slab_weight=0.01).build())
    for model in (0, 1):
        ex.accepted([1] * 6, model=model, max_new=2)
    ex.run()
    assert set(ex.finished.values()) == {FinishReason.LENGTH}


def test_a_request_that_needs_its_whole_reservation_asks_for_slabs_that_hold_it() -> None:
    """What it asks for counts beside the blocks that it would take anyway: all of them, and one more."""
    asking = spec(6, 12, admission=_core.Admission.MAX_UTIL, block_size=3, max_batch_tokens=4)
    ex = Elastic([spec(7, 21, block_size=2, max_batch_tokens=19), asking],
                 Config(arena_slabs=20, max_preemptions=0, slab_hysteresis_us=400))  # fmt: skip
    for i in range(4):
        ex.accepted([i + 1] * 10, model=0, max_new=9)
    for _ in range(4):
        ex.step()
    request = ex.accepted([9] * 13, model=1, max_new=8)
    ex.run()
    assert ex.finished[request] == FinishReason.LENGTH


def test_slabs_are_zeroed_before_weights_can_come_there() -> None:
    """A slab goes to a model that cannot use it yet; before it could, its weights' owner wakes."""
    busy = spec(1, 12, max_batch_tokens=64)
    specs = [spec(0, 12, weight_slabs=2), spec(1, 12), busy]
    ex = Elastic(specs, Config(arena_slabs=14, quantum_us=1))
    for i in range(3):  # all slabs but one and the weights' are in use, and end in the same step
        ex.accepted([i + 1] * (12 if i < 2 else 8), model=2, max_new=4)
    ex.step()
    ex.runtime.sleep(0)
    for _ in range(3):
        assert ex.plan() is not None
        ex.move_weights()
        ex.commit(ex.in_flight.popleft())
    assert ex.runtime.state(0) == ModelState.ASLEEP
    assert ex.in_flight, "all that model 2 has to do is on the device"
    waiting = ex.accepted([7] * 12, model=1, max_new=4)
    ex.plan()
    assert 0 < ex.owned(1) < 4, "not enough"
    while ex.in_flight:
        ex.commit(ex.in_flight.popleft())
    ex.runtime.wake(0)
    woken = ex.accepted([8] * 4, model=0, max_new=4)
    ex.run()
    assert {ex.finished[r] for r in (waiting, woken)} == {FinishReason.LENGTH}


def two_steps_ahead(models: list[ModelSpec], arena_slabs: int, **kwargs: object) -> Elastic:
    """Six requests of model 0, of which two steps are planned and none is committed."""
    ex = Elastic(models, Config(arena_slabs=arena_slabs, **kwargs))  # type: ignore[arg-type]
    for i in range(6):
        ex.accepted([i + 1] * 5, max_new=6)
    for _ in range(2):
        assert ex.plan() is not None
    assert len(ex.in_flight) == 2
    return ex


def go_on(ex: Elastic) -> None:
    """Others come where the memory of those that have ended was; then everything ends."""
    for i in range(20):
        ex.accepted([30 + i] * 5, model=1, max_new=3)
    while ex.in_flight:
        ex.commit(ex.in_flight.popleft())
        ex.runtime.check_invariants()
    ex.run()


@pytest.mark.parametrize("batch", [16, 64])
def test_a_model_is_removed_with_two_steps_uncommitted(batch: int) -> None:
    """Prompts in chunks, with rows that sample nothing, and decodes whose tokens are all to come."""
    ex = two_steps_ahead([spec(1, 12, max_batch_tokens=batch), spec(1, 12)], 24)
    ex.remove(0)
    assert [ex.finished[r] for r in range(6)] == [FinishReason.CANCELLED] * 6
    assert ex.outputs == {r: [] for r in range(6)}
    go_on(ex)
    assert ex.runtime.state(0) == ModelState.REMOVED
    assert {ex.finished[r] for r in range(6, 26)} == {FinishReason.LENGTH}


@pytest.mark.parametrize("batch", [16, 64])
def test_a_model_sleeps_with_two_steps_uncommitted_and_loses_no_token_of_them(batch: int) -> None:
    models = [spec(1, 12, max_batch_tokens=batch, weight_slabs=1), spec(1, 12)]
    ex = two_steps_ahead(models, 24)
    ex.runtime.sleep(0)
    ex.runtime.check_invariants()
    while ex.in_flight:
        ex.commit(ex.in_flight.popleft())
        ex.runtime.check_invariants()
    planned = sum(row.samples for step in ex.steps for row in step.rows)
    assert planned > 0
    assert sum(len(text) for text in ex.outputs.values()) == planned
    ex.move_weights()
    ex.runtime.wake(0)
    go_on(ex)
    plain = two_steps_ahead(models, 24)
    go_on(plain)
    assert ex.outputs == plain.outputs
    assert set(ex.finished.values()) == {FinishReason.LENGTH}


def test_a_model_whose_home_others_use_wakes_with_two_steps_uncommitted() -> None:
    """Requests of others are taken off; the tokens that they have yet to be given come all the same."""
    ex = Elastic([spec(1, 12), spec(0, 12, weight_slabs=3)], Config(arena_slabs=13))
    ex.runtime.sleep(1)
    ex.plan()
    ex.move_weights()
    for i in range(6):
        ex.accepted([i + 1] * 5, max_new=6)
    while len(ex.in_flight) < 2:
        assert ex.plan() is not None
    ex.runtime.wake(1)
    assert ex.runtime.stats()[0].preemptions > 0
    ex.runtime.check_invariants()
    go_on(ex)
    assert set(ex.finished.values()) == {FinishReason.LENGTH}


def test_requests_that_fit_beside_no_newcomer_end_with_two_steps_uncommitted() -> None:
    ex = Elastic([spec(1, 12)], Config(arena_slabs=12))
    large = ex.accepted([1] * 20, max_new=20)
    small = ex.accepted([2] * 4, max_new=4)
    for _ in range(2):
        assert ex.plan() is not None
    ex.add(spec(4, 8))
    ex.runtime.check_invariants()
    go_on(ex)
    assert ex.finished[large] == FinishReason.NEVER_FITS
    assert ex.finished[small] == FinishReason.LENGTH


def test_a_request_that_is_cancelled_between_two_uncommitted_steps_gets_no_token_of_them() -> None:
    ex = Pipeline()
    requests = [ex.accepted([i + 1] * 3, max_new=8) for i in range(3)]
    for _ in range(2):
        assert ex.plan() is not None
    ex.runtime.cancel(requests[1])
    while ex.in_flight:
        ex.commit(ex.in_flight.popleft())
    assert len(ex.outputs[requests[1]]) == 2, "it ends at the next step, not before"
    ex.run()
    assert ex.finished[requests[1]] == FinishReason.CANCELLED


def test_a_cancel_that_is_read_for_a_model_that_is_refused_ends_its_request() -> None:
    ex = Executor([spec(1, 6), spec(1, 6)], Config(arena_slabs=5))
    request = ex.accepted([1, 2, 3])
    ex.runtime.cancel(request)
    with pytest.raises(ValueError, match="gets no slab of the arena"):
        ex.runtime.add_model(spec(0, 6, slab_weight=0.01).build())
    assert [int(e["request_id"]) for e in ex.runtime.drain_events()] == [request]
    assert not ex.runtime.has_work()
