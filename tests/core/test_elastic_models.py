"""E1-E6 of whole runtimes, and models that come, sleep, wake and go: no request notices but by its time."""

from __future__ import annotations

import random

import pytest

from airi import _core
from airi._core import Admit, FinishReason, ModelState, parts

from .elastic import Elastic
from .harness import Config, ModelSpec, next_token

MAX_UTIL = _core.Admission.MAX_UTIL


def spec(low: int = 0, high: int = 12, **kwargs: object) -> ModelSpec:
    return ModelSpec(min_slabs=low, max_slabs=high, max_num_seqs=6, max_model_len=40, **kwargs)  # type: ignore[arg-type]


def expected(prompt: list[int], count: int, request: int) -> list[int]:
    """What a request generates when it is alone."""
    text = list(prompt)
    for draw in range(count):
        text.append(next_token(request, draw, text[-1]))
    return text[len(prompt) :]


class Traffic:
    """Random requests, and what each must come to."""

    def __init__(self, ex: Elastic, seed: int) -> None:
        self.ex, self.draw = ex, random.Random(seed)
        self.wanted: dict[int, list[int]] = {}

    def submit(self, model: int) -> None:
        draw = self.draw
        prompt = [draw.randint(1, 3) for _ in range(draw.randint(1, 16))]
        count = draw.randint(1, 12)
        request, admit = self.ex.submit(prompt, model=model, max_new=count)
        if admit == Admit.ACCEPTED:
            self.wanted[request] = expected(prompt, count, request)
        else:
            assert admit in (Admit.MODEL_GONE, Admit.NEVER_FITS)

    def check_outputs(self, *, models_change: bool = False) -> None:
        for request, text in self.wanted.items():
            if models_change and self.ex.finished[request] in (
                FinishReason.CANCELLED,
                FinishReason.NEVER_FITS,
            ):
                continue
            assert self.ex.finished[request] == FinishReason.LENGTH
            assert self.ex.outputs[request] == text


@pytest.mark.parametrize("admission", list(_core.Admission))
@pytest.mark.parametrize("seed", range(4))
def test_requests_of_models_that_share_an_arena_come_to_what_they_come_to_alone(
    seed: int, admission: _core.Admission
) -> None:
    """E1, E3, E5, R2: load goes to and fro, slabs follow it, every text is right."""
    specs = [spec(2, admission=admission), spec(1, 8, admission=admission, slab_weight=2.0)]
    ex = Elastic(specs, Config(arena_slabs=10, slab_blocks=3, slab_hysteresis_us=300))
    traffic = Traffic(ex, seed)
    most = [0, 0]
    for step in range(600):
        busy = step // 150 % 2
        if traffic.draw.random() < 0.5:
            traffic.submit(busy if traffic.draw.random() < 0.9 else 1 - busy)
        ex.step()
        ex.runtime.check_invariants()
        owned = [ex.owned(0), ex.owned(1)]
        assert sum(owned) <= 10, "E1"
        assert owned[1] <= 8, "E1"
        most = [max(a, b) for a, b in zip(most, owned, strict=True)]
    ex.run()
    traffic.check_outputs()
    assert most[0] + most[1] > 10, "both have had more than their half"
    assert ex.device.num_zeroed > 0


def test_a_model_that_is_due_slabs_gets_them_while_the_other_never_stops() -> None:
    """Liveness: a long head beside a model that would fill the arena for ever."""
    specs = [spec(0, 8, admission=MAX_UTIL), spec(0, 8)]
    ex = Elastic(specs, Config(arena_slabs=8, slab_blocks=2, slab_hysteresis_us=10**9, quantum_us=100))
    for _ in range(40):
        ex.accepted([1] * 8, model=0, max_new=8)
    for _ in range(6):
        ex.step()
    assert ex.owned(0) == 8
    late = ex.accepted([1] * 20, model=1, max_new=12)
    for _ in range(60):
        ex.accepted([1] * 8, model=0, max_new=8)
        ex.step()
        if late in ex.finished:
            break
    assert ex.finished[late] == FinishReason.LENGTH
    ex.run()


def test_a_request_beyond_what_its_model_can_count_on_is_refused() -> None:
    """C6: half the surplus here; it might never get more."""
    ex = Elastic([spec(1, 8), spec(3, 8)], Config(arena_slabs=8, slab_blocks=2))
    assert ex.submit([1] * 20, model=0, max_new=5)[1] == Admit.NEVER_FITS
    assert ex.submit([1] * 20, model=0, max_new=4)[1] == Admit.ACCEPTED
    assert ex.submit([1] * 30, model=1, max_new=10)[1] == Admit.ACCEPTED
    ex.run()


def test_below_its_minimum_a_model_takes_requests_of_the_other_off() -> None:
    """E2 in one step, hysteresis or not."""
    specs = [spec(0, 8), spec(4, 8)]
    ex = Elastic(specs, Config(arena_slabs=8, slab_blocks=2, slab_hysteresis_us=10**9, quantum_us=100))
    for i in range(4):
        ex.accepted([i] * 4, model=0, max_new=12)
    for _ in range(3):
        ex.step()
    assert ex.owned(0) == 8
    urgent = ex.accepted([3] * 16, model=1, max_new=16)
    for _ in range(3):
        ex.step()
    assert ex.outputs[urgent]
    assert ex.owned(1) == 4
    assert ex.runtime.stats()[0].preemptions > 0
    ex.run()


def asleep(ex: Elastic, model: int) -> None:
    ex.runtime.sleep(model)
    for _ in range(4):
        ex.step()
    assert ex.runtime.state(model) == ModelState.ASLEEP


def test_a_sleeping_models_space_is_lent_and_comes_back() -> None:
    specs = [spec(2, 12, weight_slabs=4), spec(2, 12)]
    ex = Elastic(specs, Config(arena_slabs=12, slab_blocks=2))
    first = ex.accepted([1] * 8, model=0, max_new=8)
    for _ in range(3):
        ex.step()
    asleep(ex, 0)
    begun = len(ex.outputs[first])
    for _ in range(8):
        ex.accepted([2] * 10, model=1, max_new=12)
    for _ in range(8):
        ex.step()
    assert ex.owned(1) > 8, "also where the weights were"
    assert len(ex.outputs[first]) == begun, "its requests wait"
    ex.runtime.wake(0)
    for _ in range(4):
        ex.step()
    assert ex.runtime.state(0) == ModelState.AWAKE
    ex.check_weights(0)
    ex.run()
    assert ex.outputs[first] == expected([1] * 8, 8, first)


def test_a_model_that_cannot_be_moved_in_sleeps_on_lends_its_space_and_is_woken_later() -> None:
    specs = [spec(2, 12, weight_slabs=4), spec(2, 12)]
    ex = Elastic(specs, Config(arena_slabs=12, slab_blocks=2))
    first = ex.accepted([1] * 8, model=0, max_new=8)
    for _ in range(3):
        ex.step()
    asleep(ex, 0)
    ex.runtime.wake(0)
    assert ex.runtime.state(0) == ModelState.MOVING_IN
    ex.runtime.sleep(0)
    assert ex.runtime.state(0) == ModelState.MOVING_OUT
    ex.runtime.confirm_moved(0)
    assert ex.runtime.state(0) == ModelState.ASLEEP
    ex.runtime.check_invariants()
    for _ in range(8):
        ex.accepted([2] * 10, model=1, max_new=12)
    for _ in range(8):
        ex.step()
    assert ex.owned(1) > 8, "also where the weights would have been"
    ex.runtime.wake(0)
    ex.run()
    assert ex.outputs[first] == expected([1] * 8, 8, first)
    ex.runtime.check_invariants()


def test_weights_move_only_when_no_step_in_flight_can_touch_them() -> None:
    ex = Elastic([spec(1, 6, weight_slabs=2), spec(1, 6)], Config(arena_slabs=8))
    ex.accepted([1] * 4, model=0, max_new=4)
    planned = ex.plan()
    assert planned is not None
    ex.runtime.sleep(0)
    assert ex.runtime.state(0) == ModelState.DRAINING
    ex.commit(ex.in_flight.popleft())
    assert ex.runtime.state(0) == ModelState.MOVING_OUT
    ex.runtime.confirm_moved(0)
    ex.accepted([1] * 4, model=1, max_new=4)
    assert ex.plan() is not None
    ex.runtime.wake(0)
    assert ex.runtime.state(0) == ModelState.RECLAIMING
    ex.commit(ex.in_flight.popleft())
    assert ex.runtime.state(0) == ModelState.MOVING_IN
    ex.load(0)
    ex.runtime.confirm_moved(0)
    ex.run()


def test_a_model_joins_serves_and_leaves() -> None:
    ex = Elastic([spec(2, 10)], Config(arena_slabs=10, slab_blocks=2))
    for _ in range(6):
        ex.accepted([1] * 8, model=0, max_new=8)
    for _ in range(3):
        ex.step()
    model = ex.add(spec(2, 6, weight_slabs=3))
    assert ex.runtime.state(model) in (ModelState.RECLAIMING, ModelState.MOVING_IN)
    request = ex.accepted([2] * 6, model=model, max_new=6)
    ex.run()
    assert ex.outputs[request] == expected([2] * 6, 6, request)
    draining = ex.accepted([2] * 6, model=model, max_new=6)
    ex.remove(model, drains=True)
    assert ex.submit([1], model=model)[1] == Admit.MODEL_GONE
    ex.run()
    ex.step()
    assert ex.finished[draining] == FinishReason.LENGTH
    assert ex.runtime.state(model) == ModelState.REMOVED
    ex.runtime.check_invariants()
    for _ in range(10):
        ex.accepted([1] * 8, model=0, max_new=8)
    for _ in range(6):
        ex.step()
    assert ex.owned(0) > 7, "all of its space is there for others"
    ex.run()


def test_removing_without_draining_cancels_what_it_has() -> None:
    ex = Elastic([spec(1, 6), spec(1, 6)], Config(arena_slabs=8))
    running = ex.accepted([1] * 4, model=1, max_new=8)
    ex.step()
    waiting = ex.accepted([1] * 4, model=1, max_new=8)
    ex.remove(1)
    ex.run()
    ex.step()
    assert {ex.finished[running], ex.finished[waiting]} == {FinishReason.CANCELLED}
    assert ex.runtime.state(1) == ModelState.REMOVED
    assert ex.runtime.stats()[1].capacity == 0


@pytest.mark.parametrize("seed", range(6))
def test_models_come_sleep_wake_and_go_at_any_time(seed: int) -> None:
    """Whatever the order: invariants hold, weights are where they belong, no text is wrong, nothing hangs."""
    ex = Elastic(
        [spec(1, 10, weight_slabs=2), spec(1, 10, weight_slabs=1, admission=MAX_UTIL)],
        Config(arena_slabs=14, slab_blocks=2, slab_hysteresis_us=200),
    )
    traffic = Traffic(ex, seed)
    draw = traffic.draw
    for _ in range(500):
        model = draw.randrange(len(ex.specs))
        state = ex.runtime.state(model)
        chance = draw.random()
        if chance < 0.4:
            traffic.submit(model)
        elif chance < 0.45 and state == ModelState.AWAKE:
            ex.runtime.sleep(model)
        elif chance < 0.55 and state == ModelState.ASLEEP:
            ex.runtime.wake(model)
        elif chance < 0.56 and len(ex.specs) < 4:
            ex.add(spec(0, 6, weight_slabs=draw.randrange(3)))
        elif chance < 0.57 and model > 1 and state in (ModelState.AWAKE, ModelState.ASLEEP):
            ex.remove(model, drains=draw.random() < 0.5)
        ex.step()
        ex.runtime.check_invariants()
    while ex.runtime.has_work():
        for model in range(len(ex.specs)):
            if ex.runtime.state(model) == ModelState.ASLEEP:
                ex.runtime.wake(model)
        ex.step()
    traffic.check_outputs(models_change=True)


def test_every_state_accepts_exactly_its_events() -> None:
    S, E = ModelState, parts.ModelEvent
    table = {
        (S.AWAKE, E.SLEEP): S.DRAINING,
        (S.DRAINING, E.QUIET): S.MOVING_OUT,
        (S.MOVING_OUT, E.MOVED): S.ASLEEP,
        (S.ASLEEP, E.WAKE): S.RECLAIMING,
        (S.RECLAIMING, E.QUIET): S.MOVING_IN,
        (S.MOVING_IN, E.MOVED): S.AWAKE,
        (S.MOVING_IN, E.SLEEP): S.DRAINING,
        (S.AWAKE, E.REMOVE): S.REMOVING,
        (S.ASLEEP, E.REMOVE): S.REMOVING,
        (S.REMOVING, E.QUIET): S.REMOVED,
    }
    for state in S:
        for event in E:
            if (state, event) in table or event == E.QUIET:
                assert parts.next_state(state, event) == table.get((state, event), state)
            else:
                with pytest.raises(ValueError, match=f"got {state.name.lower().replace('_', ' ')}"):
                    parts.next_state(state, event)


def test_what_cannot_be_added_changes_nothing() -> None:
    ex = Elastic([spec(4, 6)], Config(arena_slabs=6))
    with pytest.raises(ValueError, match="needs min_slabs or max_slabs"):
        ex.runtime.add_model(ModelSpec(blocks=2).build())
    with pytest.raises(ValueError, match="model 1 wants 3 slabs, 2 of 6 are not promised"):
        ex.runtime.add_model(spec(3, 6).build())
    with pytest.raises(ValueError, match="weight_slabs must be at most what can be cleared"):
        ex.runtime.add_model(spec(0, 6, weight_slabs=7).build())
    with pytest.raises(ValueError, match="device_weight must lie in"):
        ex.runtime.add_model(spec(0, 6, device_weight=0.0).build())
    for watermark in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"watermark must be in \[0, 1\), got "):
            ex.runtime.add_model(spec(0, 6, watermark=watermark).build())
    with pytest.raises(ValueError, match="a model must be asleep to wake, got awake"):
        ex.runtime.wake(0)
    with pytest.raises(ValueError, match="model must be a model of this runtime, got 7"):
        ex.runtime.sleep(7)
    request = ex.accepted([1] * 4)
    ex.run()
    assert ex.finished[request] == FinishReason.LENGTH
    assert len(ex.runtime.stats()) == 1
    ex.runtime.check_invariants()
    assert ex.runtime.add_model(spec(0, 6).build()) == 1, "its id is the next one"
