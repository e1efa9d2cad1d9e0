"""E1 of the arena's books: slabs are conserved, blocks never leave their slabs, targets add up."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airi import _core
from airi._core import parts

from .harness import make_buffers

GRANULE = _core.GRANULE_BYTES


def as_written(weight: float) -> Fraction:
    return Fraction(round(weight * 1e9), 10**9)


def naive_targets(total: int, of_models: list[tuple[int, int, float]], wanted: list[int]) -> list[int]:
    """Water-filling in fractions: a level rises until the surplus is gone; who is full stays as it is.

    Weights are what they are written as, to 9 digits.
    """
    limits = [(low, high, as_written(weight)) for low, high, weight in of_models]
    left = Fraction(total - sum(low for low, _, _ in limits))
    want = [min(max(w, low), high) - low for (low, high, _), w in zip(limits, wanted, strict=True)]
    full: set[int] = set()
    while True:
        weights = sum(w for i, (_, _, w) in enumerate(limits) if i not in full)
        if not weights:
            break
        level = left / weights
        fuller = {i for i, n in enumerate(want) if i not in full and n <= level * limits[i][2]}
        if not fuller:
            break
        left -= sum(want[i] for i in fuller)
        full |= fuller
    parts_of = [n if i in full else int(level * limits[i][2]) for i, n in enumerate(want)]
    return [low + part for (low, _, _), part in zip(limits, parts_of, strict=True)]


some_weights = st.one_of(
    st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    st.integers(1, 40).map(lambda tenths: tenths / 10),
    st.floats(1 / 1024, 1024),
)
some_limits = st.tuples(st.integers(0, 3), st.integers(1, 20), some_weights).map(
    lambda t: (min(t[0], t[1]), t[1], t[2])
)


@given(
    st.integers(40, 70),
    st.lists(some_limits, min_size=1, max_size=4),
    st.lists(st.integers(0, 60), min_size=4),
)
def test_targets_are_minima_and_weighted_shares_of_demand(
    total: int, limits: list[tuple[int, int, float]], wanted: list[int]
) -> None:
    arena = parts.SlabArena(total * GRANULE, GRANULE)
    spare = total - sum(low for low, _, _ in limits)
    weights = sum(as_written(weight) for _, _, weight in limits)
    guaranteed = [min(high, low + int(spare * as_written(w) / weights)) for low, high, w in limits]
    assume(all(guaranteed))
    for low, high, weight in limits:
        arena.add_model(low, high, weight)
    assert [arena.guaranteed(model) for model in range(len(limits))] == guaranteed
    wanted = wanted[: len(limits)]
    targets = arena.targets(wanted)
    assert targets == naive_targets(total, limits, wanted)
    assert sum(targets) <= total
    for model, ((low, high, _), want, target) in enumerate(zip(limits, wanted, targets, strict=True)):
        assert low <= target <= high
        assert target >= min(want, arena.guaranteed(model)), "nobody's demand costs another its guarantee"


@pytest.mark.parametrize(
    ("total", "weights", "guaranteed"),
    [(20, (0.6, 0.2), (15, 5)), (10, (0.3, 0.7), (3, 7)), (100, (0.57, 0.43), (57, 43))],
)
def test_a_guarantee_is_the_part_that_the_weights_say_and_targets_are_no_less(
    total: int, weights: tuple[float, float], guaranteed: tuple[int, int]
) -> None:
    """0.6 / (0.6 + 0.2) is a little below 3 / 4."""
    arena = parts.SlabArena(total * GRANULE, GRANULE)
    models = [arena.add_model(0, total, weight) for weight in weights]
    assert tuple(map(arena.guaranteed, models)) == guaranteed
    for wanted in (guaranteed, (total, total), (guaranteed[0], total), (total, guaranteed[1])):
        assert tuple(arena.targets(list(wanted))) == guaranteed


def test_limits_that_cannot_be_kept_beside_the_others_are_refused() -> None:
    arena = parts.SlabArena(10 * GRANULE, GRANULE)
    arena.add_model(4, 10, 1.0, 3)
    with pytest.raises(ValueError, match="model 1 wants 4 slabs, 3 of 10 are not promised to others"):
        arena.add_model(4, 10)
    with pytest.raises(ValueError, match=r"model [01] gets no slab"):
        arena.add_model(0, 10, 1.0, 3)
    with pytest.raises(ValueError, match="max_slabs >= 1, got 3 and 2"):
        arena.add_model(3, 2)
    with pytest.raises(ValueError, match="slab_weight must lie in"):
        arena.add_model(0, 2, 0.0)
    assert arena.add_model(0, 2) == 1
    arena.check_invariants()


@given(st.integers(1, 9), st.integers(1, 5), st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_entries_are_offsets_of_disjoint_blocks_inside_the_models_slabs(
    slab_granules: int, block_granules: int, takes: list[int]
) -> None:
    if block_granules > slab_granules:
        return
    arena = parts.SlabArena(len(takes) * slab_granules * GRANULE, slab_granules * GRANULE)
    seen: set[int] = set()
    for model in range(3):
        slabs = [slab for slab, owner in enumerate(takes) if owner == model]
        entries = arena.block_entries(slabs, block_granules * GRANULE)
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
        parts.SlabArena(arena, slab)


def test_a_block_that_fits_no_slab_is_refused() -> None:
    arena = parts.SlabArena(4 * GRANULE, 2 * GRANULE)
    for size in (0, 100, 3 * GRANULE):
        with pytest.raises(ValueError, match=f"fits a slab of 8192 bytes, got {size}"):
            arena.block_entries([0], size)


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
