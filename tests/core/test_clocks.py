"""A clock that goes back is one that stands still, whatever policies look at it; one that stands still ends nothing."""

from __future__ import annotations

import random

import pytest

from airi import _core
from airi._core import Admission

from .elastic_tiered import ElasticTiered
from .harness import Config, ModelSpec, Step
from .tiered import Weather


class Clocked(ElasticTiered):
    """The runtime is told a moment that jumps; or, for comparison, the latest that it would have been told."""

    def __init__(self, specs: list[ModelSpec], config: Config, weather: Weather, *, jumps: bool) -> None:
        self.jumps, self.hand, self.latest, self.num_jumps = jumps, random.Random(5), -(2**53), 0
        super().__init__(specs, config, weather=weather)

    def plan(self) -> Step | None:
        told = self.now - self.hand.choice([0, 0, 0, 150, 10**6, 2**52])
        self.num_jumps += told < self.latest
        self.latest = max(self.latest, told)
        real, self.now = self.now, told if self.jumps else self.latest
        step = super().plan()
        self.now = real
        return step


def everything(rng: random.Random) -> tuple[list[ModelSpec], Config]:
    """All that looks at the clock: aging, deadlines, targets, borrowing, residency, slabs, transfers, best effort."""
    specs = [
        ModelSpec(
            min_slabs=2, max_slabs=12, weight_slabs=rng.randint(0, 1), max_num_seqs=5, max_model_len=48,
            max_batch_tokens=24, admission=rng.choice(list(Admission)), watermark=rng.choice([0.0, 0.1]),
            targets=((rng.randint(400, 6000), rng.randint(150, 900)), (None, 600)), itl_credit=0.5,
        )
        for _ in range(2)
    ]  # fmt: skip
    config = Config(
        arena_slabs=18, slab_blocks=2, num_bands=3, aging_us=800, quantum_us=300, min_residency_us=200,
        max_borrow_us=500, slab_hysteresis_us=700, host_blocks=30, disk_blocks=40, load_timeout_us=900,
        fairness_gap_tokens=30, locality_quantum_tokens=40, dedupe_steps=4, bypass_tokens=40,
    )  # fmt: skip
    return specs, config


def run(seed: int, *, jumps: bool) -> Clocked:
    rng = random.Random(seed)
    specs, config = everything(rng)
    late = random.Random(seed + 1)
    ex = Clocked(specs, config, Weather(delay_us=lambda kind: late.choice([20, 20, 3000])), jumps=jumps)
    ex.runtime.set_kv_quota(1, 0, 4)
    for tick in range(220):
        while tick < 150 and rng.random() < 0.3:
            family = rng.randint(1, 4)
            ex.submit(
                [family] * rng.randint(4, 24) + [rng.randint(1, 9)],
                model=rng.randrange(2), tenant=rng.randint(0, 3), band=rng.randrange(3),
                max_new=rng.randint(1, 14), deadline=ex.now + rng.choice([-100, 50, 2000, 10**9]),
            )  # fmt: skip
        ex.step()
        ex.runtime.check_invariants()
    ex.run(limit=20_000)
    ex.settle()
    return ex


@pytest.mark.parametrize("seed", range(6))
def test_a_clock_that_jumps_back_is_one_that_stands_still_under_every_policy(seed: int) -> None:
    jumping, standing = run(seed, jumps=True), run(seed, jumps=False)
    assert jumping.num_jumps > 20
    assert [(s.rows, s.deltas, s.ops) for s in jumping.steps] == [
        (s.rows, s.deltas, s.ops) for s in standing.steps
    ]
    assert jumping.finished == standing.finished
    ended = set(jumping.finished.values())
    assert {_core.FinishReason.LENGTH, _core.FinishReason.DEADLINE} <= ended
    assert all(s.active_blocks == 0 for s in jumping.runtime.stats())
