"""T1-T4 and E1-E6 together: models share slabs, and have copies of blocks in host memory and on disk."""

from __future__ import annotations

import random

import pytest

from airi import _core
from airi._core import FinishReason, KvEventKind, MemoryOpKind, ModelState

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
        text = prompt(draw.randint(1, 5), draw.randint(8, 24)) + [draw.randint(1, 900)]
        count = draw.randint(1, 12)
        request, admit = self.ex.submit(text, model=model, max_new=count)
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
                assert self.ex.finished[request] == FinishReason.CANCELLED


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
