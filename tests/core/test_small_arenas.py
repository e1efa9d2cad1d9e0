"""Arenas, hosts and disks of a block or two, under every policy: everything that is accepted ends."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from airi import _core
from airi._core import Admission, Admit, FinishReason

from .elastic_tiered import ElasticTiered
from .harness import Config, ModelSpec
from .tiered import Tiered
from .timed import STATE

ONE = ModelSpec(blocks=1, block_size=4, max_model_len=12, max_num_seqs=3, max_batch_tokens=6)
POLICIES = [
    Config(num_bands=2, fairness_gap_tokens=1, bypass_tokens=20),
    Config(num_bands=2, locality_quantum_tokens=1, dedupe_steps=5, aging_us=1),
    Config(num_bands=2, host_blocks=1, store_on_reuse=0),
    Config(num_bands=2, host_blocks=1, disk_blocks=1, store_on_reuse=0, load_timeout_us=1, max_ops=16),
    Config(num_bands=2, host_blocks=2, disk_blocks=1, dedupe_steps=3, locality_quantum_tokens=30),
]


def submit_some(ex: Tiered, rng: random.Random, tick: int) -> None:
    ex.submit(
        [rng.randint(1, 2)] * rng.randint(1, 8),
        max_new=rng.randint(1, 5),
        model=tick // 20 % len(ex.specs),
        tenant=tick % 3,
        band=tick % 2,
    )


def run_all(ex: Tiered, rng: random.Random, quotas: list[int]) -> None:
    for tick in range(60):
        submit_some(ex, rng, tick)
        if quotas and tick % 7 == 3:
            ex.runtime.set_kv_quota(tick % 3, rng.randrange(len(ex.specs)), rng.choice(quotas))
        ex.step()
        ex.runtime.check_invariants()
    ex.run(limit=20_000)
    ex.settle()
    ex.runtime.check_invariants()
    assert set(ex.finished) == set(ex.outputs)
    assert set(ex.finished.values()) <= {FinishReason.LENGTH, FinishReason.NEVER_FITS}
    assert FinishReason.LENGTH in ex.finished.values()
    assert all(s.active_blocks == 0 for s in ex.runtime.stats())


@pytest.mark.parametrize("quotas", [[], [0, 1]], ids=["plain", "quotas"])
@pytest.mark.parametrize("targets", [(), ((0, 0),), ((2**53, 2**53), (0, None)), ((500, 100),)])
@pytest.mark.parametrize("config", POLICIES)
def test_one_block_serves_one_request_after_the_other(
    config: Config, targets: tuple[tuple[int | None, int | None], ...], quotas: list[int]
) -> None:
    rng = random.Random(1)
    spec = replace(ONE, targets=targets, admission=rng.choice(list(Admission)))
    ex = Tiered([spec], replace(config))
    ex.runtime.step_time(0).import_state(STATE)
    assert ex.submit([1, 2, 3], max_new=2)[1] == Admit.NEVER_FITS
    run_all(ex, rng, quotas)


@pytest.mark.parametrize("quotas", [[], [0, 1]], ids=["plain", "quotas"])
@pytest.mark.parametrize("config", POLICIES)
def test_models_share_slabs_of_one_block(config: Config, quotas: list[int]) -> None:
    """Each can count on one slab; a third goes to and fro."""
    rng = random.Random(2)
    specs = [
        replace(ONE, min_slabs=0, max_slabs=2, admission=admission)
        for admission in (Admission.MAX_UTIL, Admission.NO_EVICT)
    ]
    ex = ElasticTiered(specs, replace(config, arena_slabs=3, slab_blocks=1, quantum_us=100))
    run_all(ex, rng, quotas)
    assert quotas or ex.device.num_zeroed > 0
    assert quotas or {s.info.model for s in ex.steps} == {0, 1}


def test_an_arena_without_a_slab_for_each_is_refused() -> None:
    specs = [replace(ONE, min_slabs=0, max_slabs=1)] * 2
    with pytest.raises(ValueError, match="gets no slab of the arena"):
        ElasticTiered(specs, Config(arena_slabs=1, slab_blocks=1))
    assert issubclass(_core.InternalError, RuntimeError), "what is refused is no broken invariant"
