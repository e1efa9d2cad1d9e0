"""R2-R4, P1-P3: who is preempted, what it loses, and when bands change places."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi import _core
from airi._core import Admission, parts

from .harness import Config, Executor, ModelSpec

Victim = tuple[int, int, int, int, int, int]
victims = st.tuples(
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 99),
)


def naive_order(v: Victim) -> tuple[float, ...]:
    band, counter, lost, freed, arrival, request = v
    return -band, -counter, lost / freed if freed else float("inf"), -arrival, -request


@given(victims, victims)
def test_the_order_of_victims_is_band_share_lost_work_arrival(a: Victim, b: Victim) -> None:
    assert parts.is_preempted_before(a, b) == (naive_order(a) < naive_order(b))


def submit_many(ex: Executor, seed: int, count: int = 24) -> None:
    rng = random.Random(seed)
    for i in range(count):
        prompt = [rng.randint(1, 3) for _ in range(rng.randint(1, 20))]
        ex.accepted(prompt, max_new=rng.randint(5, 30), tenant=i % 3, stop=(5,))


def small_memory(**changes: object) -> ModelSpec:
    spec = ModelSpec(blocks=16, block_size=4, max_model_len=60, max_num_seqs=8, max_batch_tokens=24,
                     admission=Admission.MAX_UTIL)  # fmt: skip
    for name, value in changes.items():
        setattr(spec, name, value)
    return spec


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_preempted_run_gives_the_tokens_of_an_unpreempted_one(seed: int, prefix_caching: bool) -> None:  # noqa: FBT001
    """R2."""
    small = Executor([small_memory(prefix_caching=prefix_caching)])
    large = Executor([small_memory(blocks=400, prefix_caching=prefix_caching)])
    for ex in (small, large):
        submit_many(ex, seed)
        ex.run()
    assert small.runtime.stats()[0].preemptions > 0
    assert large.runtime.stats()[0].preemptions == 0
    assert small.outputs == large.outputs
    assert small.finished == large.finished


@pytest.mark.parametrize("limit", [0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_request_is_preempted_at_most_as_often_as_configured(seed: int, limit: int) -> None:
    """R3: afterwards it comes back with its full reservation and stays."""
    ex = Executor([small_memory()], Config(max_preemptions=limit))
    submit_many(ex, seed)
    ex.run()
    starts: dict[int, int] = {}
    for step in ex.steps:
        for row in step.rows:
            starts[row.request] = starts.get(row.request, 0) + row.first
    assert max(starts.values()) <= limit + 1
    assert len(ex.finished) == 24


@pytest.mark.parametrize("seed", range(6))
def test_no_step_preempts_and_admits_among_equals(seed: int) -> None:
    """R4: with one band, a step that runs out of memory admits nothing."""
    ex = Executor([small_memory()])
    submit_many(ex, seed)
    before = 0
    seen = 0
    while ex.runtime.has_work():
        step = ex.step()
        assert step is not None
        now = ex.runtime.stats()[0].preemptions
        if now > before:
            seen += 1
            assert not any(r.first for r in step.rows)
        before = now
    assert seen > 0


def test_a_preempted_request_keeps_its_arrival() -> None:
    """P3: it comes back before whoever arrived later, although those have waited without a break."""
    ex = Executor([small_memory(blocks=8, max_model_len=32, prefix_caching=False)])
    running = [ex.accepted([i + 1] * 8, max_new=20, arrival=i) for i in range(2)]
    later = [ex.accepted([9] * 20, max_new=4, arrival=10 + i) for i in range(3)]
    while not ex.runtime.stats()[0].preemptions:
        step = ex.step()
        assert step is not None
        assert not {r.request for r in step.rows} & set(later)
    assert {r.request for r in ex.steps[-1].rows} == {running[0]}, "the later of the two made way"
    ex.run()
    starts = [r.request for s in ex.steps for r in s.rows if r.first]
    assert starts[:3] == [*running, running[1]]


def test_requests_of_one_class_never_preempt_each_other_however_long_someone_waits() -> None:
    """P2: no ping-pong. Those who wait age into the first band; those who run in the second keep their place."""
    ex = Executor([ModelSpec(max_num_seqs=2, max_model_len=60)], Config(num_bands=3, aging_us=500))
    for i in range(6):
        ex.accepted([i + 1] * 4, max_new=30, band=1)
    ex.run()
    assert ex.runtime.stats()[0].preemptions == 0


@pytest.mark.parametrize("limit", ["slots", "blocks"])
@pytest.mark.parametrize("admission", list(Admission))
def test_a_more_urgent_request_takes_the_place_of_a_less_urgent_one(limit: str, admission: Admission) -> None:
    """P2."""
    spec = ModelSpec(blocks=200, max_num_seqs=2, admission=admission)
    if limit == "blocks":
        spec = ModelSpec(blocks=16, max_num_seqs=8, max_batch_tokens=64, admission=admission)
    ex = Executor([spec], Config(num_bands=3))
    patient = [ex.accepted([i + 1] * 12, max_new=20, band=2) for i in range(2)]
    ex.step()
    middle = ex.accepted([7] * 20, max_new=4, band=1)
    urgent = ex.accepted([8] * 20, max_new=4, band=0)
    ex.step()
    step = ex.steps[-1]
    assert urgent in {r.request for r in step.rows}
    ex.run()
    order = [r.request for s in ex.steps for r in s.rows if r.first]
    assert order.index(urgent) < order.index(middle) or middle in {r.request for r in step.rows}
    assert ex.runtime.stats()[0].preemptions >= 1
    assert set(ex.finished) == {*patient, middle, urgent}
    assert set(ex.finished.values()) == {_core.FinishReason.LENGTH}


def test_an_urgent_prompt_is_computed_before_a_long_one_that_already_runs() -> None:
    spec = ModelSpec(blocks=100, block_size=4, max_model_len=200, max_batch_tokens=8)
    ex = Executor([spec], Config(num_bands=2))
    ex.accepted([1] * 150, max_new=1, band=1)
    ex.step()
    urgent = ex.accepted([2] * 4, max_new=1, band=0)
    step = ex.step()
    assert step is not None
    assert step.rows[0].request == urgent
    assert urgent in ex.finished


def test_making_way_in_vain_does_not_happen() -> None:
    """Where preempting every less urgent request would still not make room, none is preempted."""
    spec = ModelSpec(blocks=20, block_size=4, max_num_seqs=8, max_batch_tokens=64, max_model_len=80)
    ex = Executor([spec], Config(num_bands=2))
    ex.accepted([1] * 40, max_new=20, band=0)
    ex.accepted([2] * 8, max_new=8, band=1)
    ex.step()
    ex.accepted([3] * 40, max_new=20, band=0)
    ex.step()
    assert ex.runtime.stats()[0].preemptions == 0
    ex.run()


def test_nobody_makes_way_for_a_head_that_gets_no_token() -> None:
    """Slots are full of decodes: as many go as the budget has blocks' worth of tokens, not all of them."""
    spec = ModelSpec(blocks=400, max_num_seqs=8, max_batch_tokens=12, max_model_len=200)
    ex = Executor([spec], Config(num_bands=2))
    for i in range(8):
        ex.accepted([i + 1], max_new=100, band=1)
    while len(ex.steps) < 2 or ex.steps[-1].info.num_decodes < 8:
        ex.step()
    urgent = {ex.accepted([i + 1] * 120, max_new=4, band=0) for i in range(8)}
    for _ in range(5):
        step = ex.step()
        assert step is not None
        served = urgent & {r.request for r in step.rows}
        assert ex.runtime.stats()[0].preemptions == len(served), "each holds its slot and gets its tokens"
    assert served
    ex.run()


def test_a_head_whose_prefix_stays_held_needs_only_the_rest() -> None:
    """P2: hits that belong to nobody who makes way cost nothing."""
    spec = ModelSpec(blocks=34, max_num_seqs=8, max_batch_tokens=64, max_model_len=96)
    ex = Executor([spec], Config(num_bands=2))
    prefix = [7] * 40  # 10 blocks
    ex.accepted([*prefix, 1], max_new=55, band=0)  # 24 blocks in all
    ex.accepted([2] * 20, max_new=12, band=1)  # 8
    for _ in range(3):
        ex.step()
    urgent = ex.accepted([*prefix, 3, 3, 3, 3], max_new=12, band=0)  # 4 more than the prefix, 2 are free
    step = ex.step()
    assert step is not None
    assert urgent in {r.request for r in step.rows}
    assert ex.runtime.stats()[0].preemptions == 1
    ex.run()


def test_blocks_that_only_victims_share_are_room_for_a_head() -> None:
    """P2: neither of two victims alone would free their common prefix."""
    spec = ModelSpec(blocks=20, max_num_seqs=8, max_batch_tokens=64, max_model_len=80)
    ex = Executor([spec], Config(num_bands=2))
    prefix = [7] * 40  # 10 blocks
    ex.accepted([*prefix, 1], max_new=15, band=1)  # and 4 more
    ex.step()
    ex.accepted([*prefix, 2], max_new=15, band=1)
    ex.step()
    urgent = ex.accepted([3] * 60, max_new=20, band=0)  # 20 blocks
    step = ex.step()
    assert step is not None
    assert urgent in {r.request for r in step.rows}
    assert ex.runtime.stats()[0].preemptions == 2
    ex.run()


def test_decodes_have_their_blocks_before_a_head_is_admitted_ahead_of_them() -> None:
    """R4, with two bands: the head does not take the block for want of which one of its own kind then goes."""
    spec = ModelSpec(blocks=3, max_model_len=12, admission=Admission.MAX_UTIL, prefix_caching=False)
    ex = Executor([spec], Config(num_bands=2))
    running = {ex.accepted([i + 1] * 3, max_new=6, band=0) for i in range(2)}
    ex.accepted([3] * 2, max_new=6, band=1)
    ex.step()
    ex.step()
    head = ex.accepted([4] * 2, max_new=6, band=0)
    ex.step()
    assert ex.runtime.stats()[0].preemptions == 2
    planned = {r.request for r in ex.steps[-1].rows}
    assert head not in planned
    assert len(planned & running) == 1
    ex.run()


def test_a_request_reaches_the_first_band_after_its_band_times_the_aging_time() -> None:
    """P1: a flood of urgent requests holds up a patient one until then, and no longer."""
    for band, aging in ((1, 1000), (2, 1000), (3, 400)):
        ex = Executor([ModelSpec(max_num_seqs=1)], Config(num_bands=4, aging_us=aging))
        patient = ex.accepted([5] * 4, max_new=1, band=band)
        started = None
        for i in range(100):
            ex.accepted([i % 7 + 1] * 4, max_new=1, band=0)
            step = ex.step()
            assert step is not None
            if patient in {r.request for r in step.rows}:
                started = step.now
                break
        assert started is not None
        assert band * aging <= started <= band * aging + 100
        ex.run()


def test_strict_bands_wait_for_ever_and_run_when_the_urgent_ones_are_done() -> None:
    ex = Executor([ModelSpec(max_num_seqs=1)], Config(num_bands=4, aging_us=None))
    patient = ex.accepted([5] * 4, max_new=1, band=3)
    for i in range(200):
        ex.accepted([i % 7 + 1] * 4, max_new=1, band=2)
        ex.step()
    assert patient not in ex.finished
    ex.run()
    assert ex.finished[patient] == _core.FinishReason.LENGTH


@given(st.integers(0, 5), st.one_of(st.none(), st.integers(1, 100)), st.integers(-50, 1000))
def test_the_aged_band_follows_the_waiting_time(band: int, aging: int | None, waited: int) -> None:
    expected = band if aging is None else max(0, band - max(waited, 0) // aging)
    assert parts.aged_band(band, aging, waited) == expected


def test_an_aging_time_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="aging_us must be at least 1, got 0"):
        parts.aged_band(2, 0, 5)
