"""Q1 where memory is short and classes compete: every plan is that of the naive scheduler."""

from __future__ import annotations

import random

import pytest

from airi._core import Admission

from .harness import Config, ModelSpec
from .twin import Twin, random_quota


def tight_twin(rng: random.Random) -> Twin:
    spec = ModelSpec(
        blocks=rng.randint(12, 28), block_size=2, max_model_len=40, max_num_seqs=rng.randint(3, 8),
        max_batch_tokens=rng.choice([8, 24]), admission=rng.choice(list(Admission)),
        watermark=rng.choice([0.0, 0.1]),
    )  # fmt: skip
    config = Config(
        num_bands=3, aging_us=rng.choice([None, 2000]), bypass_tokens=rng.choice([0, 60]),
        max_preemptions=rng.randint(1, 4), fairness_gap_tokens=rng.choice([None, 10]),
    )  # fmt: skip
    return Twin([spec], config)


def ask(rng: random.Random, twin: Twin) -> None:
    """Tenant 0 has the classes in a hurry, and no quota; prompts are of few families, so that caches fill."""
    tenant = rng.randint(0, 3)
    family = rng.choice([tenant, tenant, 7])
    twin.submit(
        [family] * rng.randint(1, 14) + [rng.randint(0, 5)],
        model=0, tenant=tenant, band=0 if tenant == 0 else rng.randint(1, 2), max_new=rng.randint(1, 16),
        min_new=0, stop=(), salts=(), deadline=None, arrival=twin.ex.now, compute_all=False,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_classes_that_compete_beside_quotas_are_planned_as_the_naive_scheduler_plans_them(seed: int) -> None:
    rng = random.Random(seed)
    twin = tight_twin(rng)
    for tick in range(160):
        if tick % 12 == 0:
            random_quota(rng, twin)
        if rng.random() < 0.6:
            ask(rng, twin)
        if rng.random() < 0.03 and twin.live:
            twin.cancel(rng.choice(sorted(twin.live)))
        twin.step(device_us=rng.randint(0, 300))
    for _ in range(5000):
        if twin.step() is None:
            break
    assert not twin.ex.runtime.has_work()
    assert twin.ex.runtime.stats()[0].active_blocks == 0
