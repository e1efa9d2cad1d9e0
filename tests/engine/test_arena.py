"""How the KV arena is sized and divided."""

from __future__ import annotations

import numpy as np
import pytest

from airi.engine.arena import KvDemand, allocate_arena, format_bytes, plan_arena
from airi.errors import MemoryBudgetError

GIB = 2**30
MIB = 2**20


def demand(bytes_per_block: int = 368640, max_blocks: int = 10**6, share: float = 1.0) -> KvDemand:
    return KvDemand(name="m", bytes_per_block=bytes_per_block, max_blocks=max_blocks, share=share)


def test_one_model_gets_every_whole_block_of_what_is_given() -> None:
    plan = plan_arena([demand()], kv_memory=GIB, available=4 * GIB, fraction=0.5)
    assert plan.num_blocks == (GIB // 368640,)
    assert plan.arena_bytes == plan.num_blocks[0] * 368640


def test_found_memory_is_a_fraction_and_never_more_than_can_be_used() -> None:
    plan = plan_arena([demand()], kv_memory=None, available=4 * GIB, fraction=0.25)
    assert GIB - 368640 < plan.arena_bytes <= GIB
    small = plan_arena([demand(max_blocks=10)], kv_memory=None, available=4 * GIB, fraction=0.25)
    assert 10 <= small.num_blocks[0] <= 11


def test_several_models_get_slabs_by_share_and_lose_little() -> None:
    demands = [demand(share=3.0), demand(bytes_per_block=8192), demand(bytes_per_block=4 * MIB)]
    plan = plan_arena(demands, kv_memory=10 * GIB, available=20 * GIB, fraction=0.5)
    assert plan.slab_bytes % 4096 == 0
    assert sum(plan.num_slabs) * plan.slab_bytes == plan.arena_bytes
    for item, slabs in zip(demands, plan.num_slabs, strict=True):
        assert slabs == pytest.approx(sum(plan.num_slabs) * item.share / 5.0, abs=len(demands))
    for item, slabs, blocks in zip(demands, plan.num_slabs, plan.num_blocks, strict=True):
        assert blocks * item.bytes_per_block >= slabs * plan.slab_bytes * 7 / 8


def test_every_model_can_reach_its_demand_when_memory_is_plenty() -> None:
    demands = [demand(max_blocks=1000, share=1.0), demand(max_blocks=10, share=5.0)]
    plan = plan_arena(demands, kv_memory=None, available=1000 * GIB, fraction=0.5)
    assert plan.num_blocks[0] >= 1000
    assert plan.num_blocks[1] >= 10


@pytest.mark.parametrize(
    ("kv_memory", "available", "text"),
    [
        (8 * GIB, 4 * GIB, r"kv_memory is 8.0 GiB, but only 4.0 GiB is free"),
        (100_000, 4 * GIB, r"kv_memory is 97.7 KiB; 1 model\(s\) need at least 360.0 KiB"),
        (None, 500_000, r"50% of the free memory is 244.1 KiB"),
    ],
)
def test_what_does_not_fit_is_named_with_its_amounts(
    kv_memory: int | None, available: int, text: str
) -> None:
    with pytest.raises(MemoryBudgetError, match=text):
        plan_arena([demand()], kv_memory=kv_memory, available=available, fraction=0.5)


def test_the_arena_is_zeroed_and_page_aligned() -> None:
    arena = allocate_arena(3 * MIB)
    assert arena.shape == (3 * MIB,)
    assert arena.ctypes.data % 4096 == 0
    assert not arena.any()
    arena[-1] = 7
    assert arena.dtype == np.uint8


def test_an_impossible_arena_is_one_clear_error() -> None:
    with pytest.raises(MemoryBudgetError, match="cannot be allocated"):
        allocate_arena(2**60)


def test_amounts_are_shown_in_the_unit_that_fits() -> None:
    assert [format_bytes(n) for n in (5, 1536, 3 * MIB, 5 * GIB)] == ["5 B", "1.5 KiB", "3.0 MiB", "5.0 GiB"]
