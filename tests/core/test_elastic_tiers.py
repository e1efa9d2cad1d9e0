"""T1-T4 and E1-E6 together: models share slabs, and have copies of blocks in host memory and on disk."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from airi import _core
from airi._core import FinishReason, KvEventKind, MemoryOpKind, ModelState, parts

from .elastic_tiered import ElasticTiered
from .harness import Config, ModelSpec, next_token
from .tiered import Weather

MAX_UTIL = _core.Admission.MAX_UTIL


def spec(low: int = 0, high: int = 12, **kwargs: object) -> ModelSpec:
    return ModelSpec(min_slabs=low, max_slabs=high, max_num_seqs=4, max_model_len=48, **kwargs)  # type: ignore[arg-type]


def prompt(family: int, length: int) -> list[int]:
    draw = random.Random(family)
    return [draw.randint(1, 900) for _ in range(length)]


def text_alone(text: list[int], count: int) -> list[int]:
    """What a request generates, whatever else happens."""
    text = list(text)
    for draw in range(count):
        text.append(next_token(0, draw, text[-1]))
    return text[-count:]


class Readers:
    """What routers know of each model's tiers, by events alone."""

    def __init__(self, ex: ElasticTiered) -> None:
        self.ex = ex
        self.cursor = 0
        self.known: dict[int, dict[tuple[int, tuple[int, int]], tuple[int, int]]] = {}
        self.kinds: set[tuple[int, int]] = set()

    def check(self) -> None:
        """The events so far come to the snapshot of each model."""
        while True:
            events, self.cursor, missed = self.ex.runtime.read_kv_events(self.cursor, 1000)
            assert missed == 0
            if len(events) == 0:
                break
            for event in events:
                place = int(event["tier"]), event["hash"].item()
                known = self.known.setdefault(int(event["model"]), {})
                self.kinds.add((int(event["kind"]), int(event["tier"])))
                if event["kind"] == KvEventKind.STORED:
                    assert place not in known, "stored twice"
                    known[place] = event["parent"].item()
                else:
                    del known[place]
        for model in range(len(self.ex.specs)):
            stored, _ = self.ex.runtime.kv_snapshot(model)
            found = {(int(e["tier"]), e["hash"].item()): e["parent"].item() for e in stored}
            assert len(found) == len(stored), "a hash is told twice"
            assert found == self.known.get(model, {})


class Life:
    """Random requests to models that come, sleep, wake and go, over transfers that are late and fail."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        failing, slow = draw.choice([0.0, 0.1, 0.4]), draw.choice([50, 500, 4000])
        config = Config(
            arena_slabs=16,
            slab_blocks=draw.choice([2, 3]),
            slab_hysteresis_us=draw.choice([0, 300]),
            host_blocks=draw.choice([10, 20, 60]),
            disk_blocks=draw.choice([0, 100, 100]),
            max_ops=draw.choice([16, 64]),
            store_on_reuse=draw.randint(0, 2),
            load_timeout_us=draw.choice([600, 100_000]),
            kv_event_records=1 << 14,
            quantum_us=200,
        )
        weather = Weather(
            failing=lambda kind: draw.random() < failing, delay_us=lambda kind: draw.randint(0, slow)
        )
        specs = [spec(1, 10, weight_slabs=2, admission=MAX_UTIL), spec(1, 10, weight_slabs=1)]
        self.ex = ElasticTiered(specs, config, weather=weather)
        self.readers = Readers(self.ex)
        self.wanted: dict[int, list[int]] = {}

    def submit(self, model: int) -> None:
        draw = self.draw
        text = [*prompt(draw.randint(1, 5), draw.randint(8, 24)), draw.randint(1, 900)]
        count = draw.randint(1, 12)
        request, admit = self.ex.submit(text, model=model, max_new=count, tenant=draw.randint(0, 2))
        if admit == _core.Admit.ACCEPTED:
            self.wanted[request] = text_alone(text, count)

    def is_there(self, model: int) -> bool:
        return self.ex.runtime.state(model) not in (ModelState.REMOVING, ModelState.REMOVED)

    def change(self, model: int) -> None:
        runtime, chance = self.ex.runtime, self.draw.random()
        state = runtime.state(model)
        if chance < 0.3 and state == ModelState.AWAKE:
            runtime.sleep(model)
        elif chance < 0.7 and state == ModelState.ASLEEP:
            runtime.wake(model)
        elif chance < 0.8 and sum(self.is_there(m) for m in range(len(self.ex.specs))) < 4:
            self.ex.add(spec(0, 6, weight_slabs=self.draw.randrange(3)))
        elif chance < 0.9 and model > 0 and state in (ModelState.AWAKE, ModelState.ASLEEP):
            self.ex.remove(model, drains=self.draw.random() < 0.5)

    def live(self, ticks: int) -> None:
        for _ in range(ticks):
            model = self.draw.randrange(len(self.ex.specs))
            if self.draw.random() < 0.4:
                self.submit(model)
            if self.draw.random() < 0.06:
                self.change(model)
            if self.draw.random() < 0.02 and self.is_there(model):
                self.ex.runtime.set_kv_quota(self.draw.randint(0, 1), model, self.draw.choice([0, 2, 4]))
            if self.draw.random() < 0.03 and self.ex.texts:
                self.ex.runtime.cancel(self.draw.choice(sorted(self.ex.texts)))
            self.ex.step()
            self.ex.runtime.check_invariants()
            self.readers.check()

    def end(self) -> None:
        self.ex.run()
        self.ex.settle()
        self.ex.step()
        self.ex.runtime.check_invariants()
        self.readers.check()
        assert all(s.active_blocks == 0 for s in self.ex.runtime.stats())
        for request, text in self.wanted.items():
            if self.ex.finished[request] == FinishReason.LENGTH:
                assert self.ex.outputs[request] == text
            else:
                assert self.ex.finished[request] in (FinishReason.CANCELLED, FinishReason.NEVER_FITS)


@pytest.mark.parametrize("seed", range(24))
def test_models_with_tiers_come_sleep_wake_and_go_at_any_time(seed: int) -> None:
    """Every KV that a row reads, a transfer moves or an event names is what it should be."""
    life = Life(seed)
    life.live(400)
    life.end()


def test_the_random_lives_meet_every_kind_of_transfer_and_event() -> None:
    counts = dict.fromkeys(MemoryOpKind, 0)
    kinds: set[tuple[int, int]] = set()
    for seed in range(12):
        life = Life(seed)
        life.live(400)
        for kind, count in life.ex.tiered.counts.items():
            counts[kind] += count
        kinds |= life.readers.kinds
    assert all(count > 20 for count in counts.values()), counts
    assert len(kinds) == 6


def test_a_prefix_outlives_the_slabs_it_lay_in() -> None:
    """The device location goes with the slab, and the entry stays: the copy in the host is hit."""
    config = Config(arena_slabs=8, slab_blocks=2, host_blocks=64, kv_event_records=1 << 12)
    ex = ElasticTiered([spec(0, 8), spec(0, 8)], config)
    readers = Readers(ex)
    text = prompt(1, 25)
    first = ex.accepted(text, model=0, max_new=2)
    ex.run()
    for family in range(2, 6):
        ex.accepted(prompt(family, 25), model=1, max_new=2)
    ex.run()
    ex.settle()
    readers.check()
    assert ex.owned(0) < 3, "its slabs have gone to the other"
    assert {tier for tier, _ in readers.known[0]} >= {1}
    again = ex.accepted(text, model=0, max_new=2)
    ex.run()
    assert ex.events[again]["num_cached_tokens"] == 24
    assert ex.outputs[again] == ex.outputs[first]
    assert ex.runtime.stats()[0].tiers.loads > 0
    readers.check()


def test_a_step_full_of_copies_keeps_a_place_for_what_is_zeroed() -> None:
    """E5: each slab that moves costs two copies and a place; of sixteen the last is not for a copy."""
    config = Config(arena_slabs=16, slab_blocks=2, host_blocks=64, max_ops=16, store_on_reuse=9)
    ex = ElasticTiered([spec(0, 16), spec(0, 16)], config)
    for family in range(4):
        ex.accepted(prompt(family, 24), model=0, max_new=8)
    ex.run()
    assert ex.owned(0) == 16, "no slab is FREE"
    late = [ex.accepted(prompt(90 + i, 7), model=1, max_new=38) for i in range(2)]
    ex.run()
    assert max(len(step.ops) for step in ex.steps) == 16
    assert all(ex.finished[request] == FinishReason.LENGTH for request in late)
    assert ex.runtime.stats()[0].tiers.dropped_stores > 0
    ex.settle()


def test_a_slab_that_a_transfer_writes_drains_and_then_moves() -> None:
    """E3: the device checks that nothing is zeroed under a transfer."""
    late = 50_000
    ex = ElasticTiered(
        [spec(0, 16), spec(0, 16)],
        Config(arena_slabs=16, slab_blocks=2, host_blocks=64),
        weather=Weather(delay_us=lambda kind: late if kind == MemoryOpKind.LOAD else 20),
    )
    text = prompt(1, 25)
    ex.accepted(text, model=0, max_new=2)
    ex.run()

    def fill(first: int) -> list[int]:
        return [ex.accepted(prompt(first + i, 40), model=1, max_new=4) for i in range(6)]

    fill(10)
    ex.run()
    ex.settle()
    assert ex.owned(0) == 0
    again = ex.accepted(text, model=0, max_new=2)
    while ex.tiered.counts[MemoryOpKind.LOAD] == 0:
        ex.step()
    ex.runtime.sleep(0)
    others = fill(20)
    while any(op.kind == MemoryOpKind.LOAD for op in ex.tiered.running):
        assert ex.runtime.stats()[0].active_blocks == 6, "transfers hold what they write"
        assert ex.owned(0) in (3, 4)
        if ex.step() is None:
            ex.now += 1000
        ex.runtime.check_invariants()
    assert any(request in ex.finished for request in others), "nobody waited for it"
    others = fill(30)
    while not set(others) <= set(ex.finished):
        ex.step()
    assert ex.owned(0) == 0
    ex.run()
    assert ex.outputs[again] == text_alone(text, 2)


def test_weights_come_back_to_slabs_of_which_something_was_to_be_copied() -> None:
    """A sleeping model's blocks are stored by a step that has not come yet when others' weights do."""
    specs = [spec(0, 8, weight_slabs=4), spec(0, 8, admission=MAX_UTIL)]
    ex = ElasticTiered(specs, Config(arena_slabs=8, slab_blocks=2, host_blocks=64))
    ex.runtime.sleep(0)
    while ex.runtime.state(0) != ModelState.ASLEEP:
        ex.step()
    requests = [ex.accepted(prompt(family, 12), model=1, max_new=4) for family in range(1, 5)]
    for _ in range(2):
        ex.step()
    while ex.in_flight:
        ex.commit(ex.in_flight.popleft())
    assert ex.owned(1) > 4, "some lie where the weights were"
    ex.runtime.wake(0)
    assert ex.runtime.state(0) == ModelState.MOVING_IN
    ex.move_weights()
    ex.run()
    ex.check_weights(0)
    for family, request in enumerate(requests, 1):
        assert ex.outputs[request] == text_alone(prompt(family, 12), 4)
    ex.settle()
    ex.runtime.check_invariants()


def test_a_model_that_is_added_gets_the_slots_of_one_that_is_gone() -> None:
    ex = ElasticTiered([spec(), spec()], Config(arena_slabs=16, slab_blocks=2, host_blocks=32))

    def stored(model: int) -> int:
        """How many blocks of the model the host holds after more than it can hold came by."""
        for family in range(12):
            ex.accepted(prompt(family, 25), model=model, max_new=2)
            ex.run()
        ex.settle()
        return int(ex.runtime.stats()[model].tiers.host_blocks)

    assert stored(1) == 16
    third = ex.add(spec())
    assert stored(third) == 0, "the others have all there is"
    ex.remove(1)
    ex.step()
    assert ex.runtime.state(1) == ModelState.REMOVED
    fourth = ex.add(spec())
    assert stored(fourth) == 10, "a third of what there is"
    ex.remove(fourth)
    ex.step()
    fifth = ex.add(spec())
    assert stored(fifth) == 10
    ex.runtime.check_invariants()


def test_slots_that_a_transfer_touches_are_given_to_nobody() -> None:
    late = {MemoryOpKind.STORE: 10_000}
    ex = ElasticTiered(
        [spec(), spec()],
        Config(arena_slabs=16, slab_blocks=2, host_blocks=32, store_on_reuse=1),
        weather=Weather(delay_us=lambda kind: late.get(kind, 20)),
    )
    for _ in range(2):
        ex.accepted(prompt(1, 25), model=1, max_new=2)
        ex.run()
    assert any(op.kind == MemoryOpKind.STORE for op in ex.tiered.running)
    ex.remove(1)
    ex.step()
    assert ex.runtime.state(1) == ModelState.REMOVED
    early = ex.add(spec())
    ex.settle()
    after = ex.add(spec())
    for model in (early, after):
        for family in range(8):
            ex.accepted(prompt(family, 17), model=model, max_new=2)
            ex.run()
        ex.settle()
    stats = ex.runtime.stats()
    assert stats[early].tiers.stores == 0
    assert stats[after].tiers.stores > 0


@pytest.mark.parametrize("seed", range(10))
def test_ranges_of_a_tier_are_taken_once_and_come_together_again(seed: int) -> None:
    draw = random.Random(seed)
    space = parts.TierSpace(200)
    free = set(range(200))
    taken: list[tuple[int, int]] = []
    for _ in range(300):
        if draw.random() < 0.5:
            most = draw.randint(0, 60)
            ranges = space.free()
            first, count = space.take(most)
            granules = set(range(first, first + count))
            assert granules <= free
            assert count == min(most, max((c for _, c in ranges), default=0))
            free -= granules
            taken.append((first, count))
        elif taken:
            first, count = taken.pop(draw.randrange(len(taken)))
            space.give_back((first, count))
            free |= set(range(first, first + count))
        runs = space.free()
        assert [g for first, count in runs for g in range(first, first + count)] == sorted(free)
        assert all(a + n < b for (a, n), (b, _) in pairwise(runs))
