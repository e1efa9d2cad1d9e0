"""E1 with fixed shares: slabs are conserved, blocks never leave their model's slabs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airi import _core
from airi._core import parts

from .harness import make_buffers

GRANULE = _core.GRANULE_BYTES


class SlabMachine(RuleBasedStateMachine):
    """Models take slabs and give them back; a list of owners says what must come out."""

    @initialize(slabs=st.integers(1, 8))
    def start(self, slabs: int) -> None:
        self.map = parts.SlabMap(slabs * GRANULE + GRANULE // 2, GRANULE)
        self.owners: list[int | None] = [None] * slabs

    @rule(model=st.integers(0, 2), count=st.integers(0, 5))
    def take(self, model: int, count: int) -> None:
        free = [i for i, owner in enumerate(self.owners) if owner is None]
        assert self.map.take(model, count) == (count <= len(free))
        if count <= len(free):
            for slab in free[:count]:
                self.owners[slab] = model

    @rule(model=st.integers(0, 2), slab=st.integers(0, 7))
    def give_back(self, model: int, slab: int) -> None:
        if slab >= len(self.owners):
            with pytest.raises(ValueError, match="slab must lie in"):
                self.map.give_back(model, slab)
        elif self.owners[slab] == model:
            self.map.give_back(model, slab)
            self.owners[slab] = None
        else:
            with pytest.raises(_core.InternalError, match="is not owned by"):
                self.map.give_back(model, slab)

    @invariant()
    def every_slab_is_free_or_owned_once(self) -> None:
        if not hasattr(self, "map"):
            return
        self.map.check_invariants()
        assert [self.map.owner(i) for i in range(self.map.num_slabs)] == self.owners
        assert self.map.num_free == self.owners.count(None)
        owned = [slab for model in range(3) for slab in self.map.owned_by(model)]
        assert len(owned) == len(set(owned)) == len(self.owners) - self.map.num_free


TestSlabMachine = SlabMachine.TestCase


@given(st.integers(1, 9), st.integers(1, 5), st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_entries_are_offsets_of_disjoint_blocks_inside_the_models_slabs(
    slab_granules: int, block_granules: int, takes: list[int]
) -> None:
    if block_granules > slab_granules:
        return
    slab_map = parts.SlabMap(len(takes) * slab_granules * GRANULE, slab_granules * GRANULE)
    for model in takes:
        assert slab_map.take(model, 1)
    seen: set[int] = set()
    for model in range(3):
        entries = slab_map.block_entries(model, block_granules * GRANULE)
        slabs = slab_map.owned_by(model)
        assert len(entries) == len(slabs) * (slab_granules // block_granules)
        for entry in entries:
            granules = set(range(entry, entry + block_granules))
            assert len({g // slab_granules for g in granules}) == 1, "a block crosses a slab"
            assert entry // slab_granules in slabs
            assert not granules & seen
            seen |= granules


@pytest.mark.parametrize(
    ("arena", "slab", "text"),
    [
        (GRANULE, 0, "slab_bytes must be a positive multiple of 4096, got 0"),
        (GRANULE, 5000, "slab_bytes must be a positive multiple of 4096, got 5000"),
        (GRANULE, 2 * GRANULE, "arena_bytes must hold at least one slab"),
        (2**44, GRANULE, "arena_bytes must be below 8 TiB"),
    ],
)
def test_an_arena_that_cannot_be_cut_is_refused(arena: int, slab: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parts.SlabMap(arena, slab)


def test_a_block_that_fits_no_slab_is_refused() -> None:
    slab_map = parts.SlabMap(4 * GRANULE, 2 * GRANULE)
    for size in (0, 100, 3 * GRANULE):
        with pytest.raises(ValueError, match=f"fits a slab of 8192 bytes, got {size}"):
            slab_map.block_entries(0, size)


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_share_of_a_hundred_slabs_is_its_percentage(percent: int) -> None:
    """0.57 * 100 is 56.99999999999999."""
    models = [
        _core.ModelConfig(
            block_size=4,
            bytes_per_block=GRANULE,
            max_model_len=16,
            max_num_seqs=2,
            max_batch_tokens=16,
            share=share,
        )
        for share in (percent / 100, None)
    ]
    config = _core.RuntimeConfig(arena_bytes=100 * GRANULE, slab_bytes=GRANULE, hash_key=bytes(16))
    runtime = _core.Runtime(config, models, [make_buffers(models, rows=2, tokens=16, spare=0)])
    assert [s.capacity for s in runtime.stats()] == [percent, 100 - percent]
