"""Q1 beside all else that moves blocks: hits, preemptions, slabs that come and go."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest

from airi._core import Admission, Admit, FinishReason, KvEventKind, ModelState

from .elastic import Elastic
from .harness import Config, Executor, ModelSpec, Step

BLOCK = 4
QUOTA = 12
FAMILIES = ([1] * 17, [1] * 9 + [2] * 12)
"""Prompts of the tenant with the quota: with three generated tokens each, at most QUOTA blocks together."""


class Regular:
    """A tenant that comes again and again with the same prompts, one at a time."""

    def __init__(self, ex: Executor) -> None:
        self.ex = ex
        self.at_work: int | None = None
        self.cursor = 0
        self.visits = 0
        for family in range(len(FAMILIES)):
            self.come(family)
            ex.run()
        self.mine = {e["hash"].item() for e in self.news() if e["kind"] == KvEventKind.STORED}

    def come(self, family: int) -> None:
        salts = ((0, b"regular"),)  # nobody else computes its prefixes
        request, admit = self.ex.submit(FAMILIES[family], max_new=3, tenant=1, salts=salts)
        assert admit == Admit.ACCEPTED
        self.at_work = request
        self.visits += 1

    def news(self) -> npt.NDArray[np.void]:
        events, self.cursor, missed = self.ex.runtime.read_kv_events(self.cursor)
        assert missed == 0
        return events

    def check(self, step: Step | None) -> None:
        """Nothing of it goes in a step that gives it no block."""
        rows = step.rows if step else []
        slots = {row.slot for row in rows if row.request == self.at_work}
        takes = step is not None and any(slot in slots for slot, _, _ in step.deltas)
        gone = {e["hash"].item() for e in self.news() if e["kind"] == KvEventKind.REMOVED}
        assert takes or not gone & self.mine, "lost within its quota, to others"

    def tick(self, rng: random.Random) -> None:
        if self.at_work in self.ex.finished and rng.random() < 0.3:
            self.come(rng.randrange(len(FAMILIES)))


def random_config(rng: random.Random) -> Config:
    return Config(
        num_bands=2,
        aging_us=rng.choice([None, 2000]),
        bypass_tokens=rng.choice([0, 60]),
        fairness_gap_tokens=rng.choice([None, 50]),
        locality_quantum_tokens=rng.choice([None, 30]),
        dedupe_steps=rng.choice([0, 4]),
        slab_hysteresis_us=rng.choice([0, 400]),
    )


def others(rng: random.Random, ex: Executor, model: int = 0) -> None:
    """Three tenants that fill the cache, two of them with quotas that change."""
    if rng.random() < 0.05:
        ex.runtime.set_kv_quota(rng.choice([2, 3]), model, rng.randint(0, 5))
    if rng.random() < 0.6:
        text = [rng.randint(1, 2) for _ in range(rng.randint(1, 40))]
        ex.submit(
            text, max_new=rng.randint(1, 16), tenant=rng.choice([0, 2, 3]), band=rng.randrange(2), model=model
        )
    if rng.random() < 0.05 and ex.texts:
        request = rng.choice(sorted(ex.texts))
        if ex.texts[request][: len(FAMILIES[0])] not in FAMILIES:
            ex.runtime.cancel(request)


@pytest.mark.parametrize("seed", range(12))
def test_within_its_quota_a_tenant_loses_no_block_to_others(seed: int) -> None:
    rng = random.Random(seed)
    spec = ModelSpec(
        blocks=40, block_size=BLOCK, max_num_seqs=rng.randint(2, 6), max_batch_tokens=rng.choice([8, 32]),
        admission=rng.choice(list(Admission)), watermark=rng.choice([0.0, 0.1]),
    )  # fmt: skip
    config = random_config(rng)
    config.kv_event_records = 1 << 14
    ex = Executor([spec], config)
    ex.runtime.set_kv_quota(1, 0, QUOTA)
    regular = Regular(ex)
    for _ in range(400):
        others(rng, ex)
        regular.tick(rng)
        regular.check(ex.step())
        ex.runtime.check_invariants()
    assert regular.visits > 5
    assert ex.runtime.stats()[0].evictions > 100, "everybody else fights for what is left"


def test_a_request_from_before_its_tenants_first_quota_comes_back_within_it() -> None:
    """What is kept for its tenant is not for it: it makes way for itself, and is admitted anew at once."""
    spec = ModelSpec(blocks=10, block_size=BLOCK, admission=Admission.MAX_UTIL)
    ex = Executor([spec])
    early = ex.accepted([1] * 4, max_new=36, tenant=1)
    ex.step()
    ex.runtime.set_kv_quota(1, 0, 4)
    ex.accepted([2] * 4, max_new=1, tenant=1)
    ex.run()
    assert ex.finished[early] == FinishReason.LENGTH
    assert ex.runtime.stats()[0].preemptions == 1


class Observed(Elastic):
    """Checks E1 and E6 at every step: who may own what, and how often a slab changes hands."""

    def __init__(self, specs: list[ModelSpec], config: Config) -> None:
        super().__init__(specs, config)
        self.zeroed_at: dict[int, int] = {}
        self.num_moves = 0

    def plan(self) -> object:  # type: ignore[override]
        before = self.runtime.stats()
        pressing = [
            s.running == 0 or self.owned(m) < (self.specs[m].min_slabs or 0) for m, s in enumerate(before)
        ]
        planned = super().plan()
        self.check_owned()
        for _, _, start, _, granules in planned.ops if planned else ():
            slab = start // granules
            rested = self.now - self.zeroed_at.get(slab, -(1 << 40))
            assert rested >= self.config.slab_hysteresis_us or any(pressing), "E6: to and fro"
            self.zeroed_at[slab] = self.now
            self.num_moves += 1
        return planned

    def check_owned(self) -> None:
        arena = self.config.arena_slabs
        assert arena is not None
        away = (ModelState.ASLEEP, ModelState.REMOVED)
        weights = sum(
            spec.weight_slabs for m, spec in enumerate(self.specs) if self.runtime.state(m) not in away
        )
        reclaiming = any(
            self.runtime.state(m) in (ModelState.RECLAIMING, ModelState.REMOVING)
            for m in range(len(self.specs))
        )
        owned = [self.owned(m) for m in range(len(self.specs))]
        assert sum(owned) + (0 if reclaiming else weights) <= arena, "E1"
        for spec, mine in zip(self.specs, owned, strict=True):
            assert mine <= (spec.max_slabs or arena), "E1"


@pytest.mark.parametrize("seed", range(8))
def test_slabs_and_quotas_and_sleep_keep_their_rules_together(seed: int) -> None:
    """E1-E6 and Q1's promises at every step; the device sees whose bytes a row reads."""
    rng = random.Random(seed)
    specs = [
        ModelSpec(min_slabs=4, max_slabs=12, weight_slabs=2, max_num_seqs=6, max_model_len=56,
                  admission=rng.choice(list(Admission)), slab_weight=rng.choice([0.5, 2.0]))
        for _ in range(2)
    ]  # fmt: skip
    config = random_config(rng)
    config.arena_slabs, config.slab_blocks, config.quantum_us = 20, 3, 200
    ex = Observed(specs, config)
    for _ in range(350):
        model = rng.randrange(2)
        others(rng, ex, model)
        state, chance = ex.runtime.state(model), rng.random()
        if chance < 0.03 and state == ModelState.AWAKE:
            ex.runtime.sleep(model)
        elif chance < 0.2 and state == ModelState.ASLEEP:
            ex.runtime.wake(model)
        ex.step()
        ex.runtime.check_invariants()
    while ex.runtime.has_work():
        for model in (0, 1):
            if ex.runtime.state(model) == ModelState.ASLEEP:
                ex.runtime.wake(model)
        ex.step()
    assert ex.num_moves > 3
    assert all(s.active_blocks == 0 for s in ex.runtime.stats())
    ended = {FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.NEVER_FITS}
    assert set(ex.finished.values()) <= ended
