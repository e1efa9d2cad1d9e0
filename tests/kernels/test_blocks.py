"""Blocks as wholes: copied and zeroed to the bit, and quantised ones gathered as floats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from airi.kernels import blocks, reference
from airi.kernels.layout import GRANULE_BYTES, KvLayout

from .paged import Case, int32, make_case, sparse_arena
from .prefills import in_tiles, run
from .tolerances import RELATIVE, RELATIVE_QUANTISED, relative_error

FP8, INT8 = torch.float8_e4m3fn, torch.int8
Op = Callable[..., None]


def noise(granules: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (granules * GRANULE_BYTES,), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("granules", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("seed", range(3))
def test_copies_are_bit_exact_and_write_nothing_else(granules: int, seed: int) -> None:
    arena = noise(64, seed)
    expected = arena.clone()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).int() * granules
    pairs = torch.stack((torch.cat((order[:3], int32([-1]))), order[3:7]), 1)
    blocks.copy_blocks(arena, pairs, granules)
    reference.copy_blocks(expected, pairs, granules)
    assert torch.equal(arena, expected)
    for source, target in pairs[:3].tolist():
        size = granules * GRANULE_BYTES
        here, there = source * GRANULE_BYTES, target * GRANULE_BYTES
        assert torch.equal(arena[there : there + size], noise(64, seed)[here : here + size])


@pytest.mark.parametrize("op", [blocks.copy_blocks, reference.copy_blocks])
def test_one_block_may_be_copied_to_many(op: Op) -> None:
    arena = noise(4)
    op(arena, int32([[1, 0], [1, 2], [1, 3]]), 1)
    assert torch.equal(arena, noise(4)[GRANULE_BYTES : 2 * GRANULE_BYTES].repeat(4))


@pytest.mark.parametrize("op", [blocks.zero_granules, reference.zero_granules])
def test_ranges_become_zero_and_nothing_else_does(op: Op) -> None:
    arena = noise(80)
    op(arena, int32([[0, 1], [2, 0], [3, 5], [20, 37], [79, 1]]))
    lit = arena.view(-1, GRANULE_BYTES).ne(0).any(1)
    dark = [0, *range(3, 8), *range(20, 57), 79]
    assert lit.logical_not().nonzero().flatten().tolist() == dark
    assert torch.equal(arena.view(-1, GRANULE_BYTES)[lit], noise(80).view(-1, GRANULE_BYTES)[lit])


def test_a_range_longer_than_what_programs_take_at_once_becomes_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ZERO_PROGRAMS", 1)  # eight programs then: 32 granules at once
    arena = noise(80)
    blocks.zero_granules(arena, int32([[1, 78]]))
    assert arena.view(-1, GRANULE_BYTES).ne(0).any(1).nonzero().flatten().tolist() == [0, 79]


def test_entries_beyond_every_32_bit_offset_are_reached(tmp_path: Path) -> None:
    """Behind 2^31 words of four bytes, what the kernels count in."""
    far = 2**33 // GRANULE_BYTES + 5
    arena = sparse_arena(tmp_path / "arena", (far + 4) * GRANULE_BYTES)
    arena[: 2 * GRANULE_BYTES] = noise(2)
    blocks.copy_blocks(arena, int32([[0, far]]), 2)
    assert torch.equal(arena[far * GRANULE_BYTES :][: 2 * GRANULE_BYTES], noise(2))
    blocks.copy_blocks(arena, int32([[far, 2]]), 2)
    assert torch.equal(arena[2 * GRANULE_BYTES :][: 2 * GRANULE_BYTES], noise(2))
    blocks.zero_granules(arena, int32([[far, 1]]))
    assert not arena[far * GRANULE_BYTES :][:GRANULE_BYTES].any()
    assert torch.equal(arena[(far + 1) * GRANULE_BYTES :][:GRANULE_BYTES], noise(2)[GRANULE_BYTES:])


def gathered(
    case: Case, op: Op, *, dtype: torch.dtype, block_size: int, spare: int = 1, **options: Any
) -> tuple[torch.Tensor, KvLayout, torch.Tensor]:
    """A scratch that held NaN, its layout and its block table; rows without queries are left out."""
    layout, batch = case.layout, case.batch
    to = KvLayout.block_major(
        block_size=block_size, num_kv_heads=layout.num_kv_heads, head_dim=layout.head_dim, dtype=dtype
    )
    taken = batch.query_start.diff() > 1
    counts = torch.where(taken, -(-batch.seq_lens // block_size), 0)
    starts = int32([0, *counts.cumsum(0).tolist()])
    size = (int(starts[-1]) + spare) * blocks.block_granules(to) * GRANULE_BYTES
    scratch = torch.full((size,), 0xFF, dtype=torch.uint8)
    table = torch.full((len(counts), max(int(counts.max()), 1)), -1, dtype=torch.int32)
    op(
        case.arena, layout, batch.block_table, batch.slots, batch.seq_lens, starts, scratch, to, table,
        **{"layer_offset": case.layer_offset} | options,
    )  # fmt: skip
    return scratch, to, table


ROWS = [(9, 9), (1, 20), (2, 64), (0, 0), (3, 31), (5, 33)]


@pytest.mark.parametrize("kv_dtype", [FP8, INT8])
@pytest.mark.parametrize(
    ("head_dim", "source", "target"),
    [(32, 16, 16), (32, 24, 40), (80, 16, 64), (80, 24, 40), (96, 64, 32), (96, 16, 16), (128, 16, 64)],
)
def test_gathered_blocks_are_what_the_specification_gathers(
    kv_dtype: torch.dtype, head_dim: int, source: int, target: int
) -> None:
    case = make_case(ROWS, head_dim=head_dim, block_size=source, kv_dtype=kv_dtype)
    found, expected = (
        gathered(case, op, dtype=torch.float32, block_size=target)
        for op in (blocks.gather_dequant, reference.gather_dequant)
    )
    assert torch.equal(found[0].view(torch.int32), expected[0].view(torch.int32))
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize(("source", "target"), [(16, 16), (24, 40)])
def test_blocks_beyond_two_gibibytes_are_gathered(source: int, target: int, tmp_path: Path) -> None:
    near = make_case([(2, 30), (3, 50)], head_dim=32, block_size=source, kv_dtype=INT8)
    far = 2**31 // GRANULE_BYTES
    arena = sparse_arena(tmp_path / "arena", far * GRANULE_BYTES + len(near.arena))
    arena[far * GRANULE_BYTES :] = near.arena
    batch = dataclasses.replace(near.batch, block_table=near.batch.block_table + far)
    found, expected = (
        gathered(case, blocks.gather_dequant, dtype=torch.float32, block_size=target)
        for case in (dataclasses.replace(near, arena=arena, batch=batch), near)
    )
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("kv_dtype", [FP8, INT8])
def test_gathered_halves_are_rounded_once(kv_dtype: torch.dtype) -> None:
    case = make_case(ROWS, head_dim=64, block_size=16, kv_dtype=kv_dtype, layer_major=True)
    found, expected = (
        gathered(case, op, dtype=torch.float16, block_size=64)
        for op in (blocks.gather_dequant, reference.gather_dequant)
    )
    assert torch.equal(found[0], expected[0])


def prefilled(case: Case, variant: str = "pointer", **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and log-sums of prefill over what was gathered in the queries' dtype; NaN of rows without a tile."""
    scratch, layout, table = gathered(case, blocks.gather_dequant, dtype=case.q.dtype, block_size=64)
    rows = torch.arange(len(case.batch.seq_lens), dtype=torch.int32)
    batch = dataclasses.replace(case.batch, slots=rows, block_table=table)
    return run(Case(layout=layout, batch=batch, arena=scratch, q=case.q), variant=variant, **options)


def check_prefilled(
    case: Case, limit: float = RELATIVE_QUANTISED, variant: str = "pointer", **options: Any
) -> None:
    """Against dense attention in float64 over what the quantised blocks say."""
    out, lse = prefilled(case, variant, **options)
    expected, expected_lse = case.expected(scale=case.q.shape[3] ** -0.5, **options)
    taken = in_tiles(case)
    assert relative_error(out[taken], expected[taken]) <= limit
    assert (lse[taken] - expected_lse[taken]).abs().max() <= 1e-2  # keys are rounded once more
    assert bool(out[~taken].isnan().all())


@pytest.mark.parametrize("variant", ["pointer", "tma"])
@pytest.mark.parametrize("kv_dtype", [FP8, INT8])
@pytest.mark.parametrize("seed", range(2))
def test_prefill_over_gathered_blocks_agrees_with_dense_attention(
    kv_dtype: torch.dtype, seed: int, variant: str
) -> None:
    case = make_case(ROWS, head_dim=32, block_size=16, dtype=torch.float16, kv_dtype=kv_dtype, seed=seed)
    check_prefilled(case, RELATIVE[torch.float16], variant)


@pytest.mark.parametrize("kv_dtype", [INT8, FP8])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_prefill_over_gathered_blocks_of_every_head_dim_agrees(kv_dtype: torch.dtype, head_dim: int) -> None:
    case = make_case(
        [(44, 66), (1, 9), (2, 2)], head_dim=head_dim, group=3, kv_heads=1, block_size=16, kv_dtype=kv_dtype
    )
    check_prefilled(case, RELATIVE[torch.float32])


@pytest.mark.parametrize("kv_dtype", [INT8, FP8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{"window": 21}, {"softcap": 2.0}, {"window": 70, "softcap": 2.0}])
def test_windows_and_caps_hold_over_gathered_blocks(
    dtype: torch.dtype, kv_dtype: torch.dtype, options: dict[str, Any]
) -> None:
    case = make_case([(40, 140)], head_dim=32, kv_heads=1, block_size=64, dtype=dtype, kv_dtype=kv_dtype)
    check_prefilled(case, RELATIVE_QUANTISED + (RELATIVE[dtype] if dtype is torch.bfloat16 else 0), **options)


@pytest.mark.parametrize("size", [1e-3, 1e3])
@pytest.mark.parametrize("kv_dtype", [INT8, FP8])
def test_gathered_values_small_and_large_stay_within_tolerance(kv_dtype: torch.dtype, size: float) -> None:
    case = make_case(
        [(20, 70)], head_dim=32, kv_heads=1, block_size=16, dtype=torch.float16, kv_dtype=kv_dtype
    )
    for entry in case.batch.block_table[1, :5].tolist():
        case.layout.scales(case.arena, entry, case.layer_offset)[:, 1] *= size
    check_prefilled(case)


@pytest.mark.parametrize("kv_dtype", [INT8, FP8])
def test_bits_do_not_depend_on_where_quantised_blocks_lie(kv_dtype: torch.dtype) -> None:
    shape: dict[str, Any] = {"head_dim": 32, "block_size": 16, "kv_dtype": kv_dtype}
    outs = [
        prefilled(make_case([(20, 45), (9, 31)], **shape, layer_major=major, order=order))[0]
        for major, order in ((False, 0), (False, 1), (True, 0))
    ]
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_only_as_many_blocks_as_asked_for_are_gathered() -> None:
    case = make_case([(40, 40)], head_dim=32, block_size=16, kv_dtype=INT8)
    scratch, layout, table = gathered(
        case, blocks.gather_dequant, dtype=torch.float32, block_size=16, num_blocks=2
    )
    size = 2 * blocks.block_granules(layout) * GRANULE_BYTES
    assert bool(scratch[:size].view(torch.float32)[: 2 * 16 * 32].isfinite().all())
    assert bool((scratch[size:] == 0xFF).all())
    assert table.tolist()[0][2] == -1


@pytest.mark.parametrize("op", [blocks, reference])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("copy_blocks", {"arena": torch.zeros(8192)}, "arena must be uint8"),
        ("copy_blocks", {"arena": noise(2)[:5000]}, "arena must be a multiple of 4096, got 5000 bytes"),
        ("copy_blocks", {"pairs": int32([[0, 1, 2]])}, r"pairs must be int32 \[any, 2\], got int32 \[1, 3\]"),
        (
            "copy_blocks",
            {"pairs": torch.zeros(1, 2)},
            r"pairs must be int32 \[any, 2\], got float32 \[1, 2\]",
        ),
        ("copy_blocks", {"pairs": int32([[0, 1]]).to("meta")}, "pairs must be on cpu, got meta"),
        ("copy_blocks", {"granules": 0}, "granules must be 1 to the arena's 2, got 0"),
        ("copy_blocks", {"granules": 3}, "granules must be 1 to the arena's 2, got 3"),
        ("zero_granules", {"ranges": int32([0, 1])}, r"ranges must be int32 \[any, 2\], got int32 \[2\]"),
    ],
)
def test_a_bad_argument_is_named(op: Any, name: str, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, dict[str, Any]] = {
        "copy_blocks": {"arena": noise(2), "pairs": int32([[0, 1]]), "granules": 1},
        "zero_granules": {"arena": noise(2), "ranges": int32([[0, 1]])},
    }
    with pytest.raises(ValueError, match=message):
        getattr(op, name)(**(arguments[name] | change))


def test_nothing_is_done_for_no_pairs_and_no_ranges() -> None:
    arena = noise(2)
    blocks.copy_blocks(arena, torch.zeros(0, 2, dtype=torch.int32), 1)
    blocks.zero_granules(arena, torch.zeros(0, 2, dtype=torch.int32))
    assert torch.equal(arena, noise(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "float"}, "layout.dtype must be a quantised dtype, got torch.float16"),
        ({"scratch_layout": "int8"}, "scratch_layout.dtype must be a float, got torch.int8"),
        (
            {"scratch_layout": "wide"},
            r"scratch_layout's kv heads and head_dim must be \(2, 32\), as layout's",
        ),
        ({"scratch": noise(1)[:100]}, "scratch must be a multiple of 4096, got 100 bytes"),
        ({"starts": int32([0])}, r"starts must be int32 \[2\], got int32 \[1\]"),
        ({"slots": int32([0, 0])}, r"slots must be int32 \[1\], got int32 \[2\]"),
        ({"scratch_table": int32([[0], [0]])}, r"scratch_table must be int32 \[1, any\]"),
        ({"layer_offset": 6}, "layer_offset must be a multiple of 4 inside the arena's"),
        ({"num_blocks": 4}, "num_blocks must be 0 to the scratch's 3, got 4"),
    ],
)
def test_a_bad_argument_of_a_gather_is_named(change: dict[str, Any], message: str) -> None:
    case = make_case([(3, 9)], head_dim=32, block_size=16, kv_dtype=INT8)
    shape: dict[str, Any] = {"block_size": 16, "num_kv_heads": 2, "head_dim": 32}
    named = {
        "float": KvLayout.block_major(**shape, dtype=torch.float16),
        "int8": case.layout,
        "wide": KvLayout.block_major(**(shape | {"head_dim": 64}), dtype=torch.float16),
    }
    batch = case.batch
    arguments: dict[str, Any] = {
        "arena": case.arena, "layout": case.layout, "block_table": batch.block_table, "slots": batch.slots,
        "seq_lens": batch.seq_lens, "starts": int32([0, 1]), "scratch": noise(3 * 1),
        "scratch_layout": named["float"], "scratch_table": int32([[0]]),
    }  # fmt: skip
    change = {key: named[value] if isinstance(value, str) else value for key, value in change.items()}
    for op in (blocks.gather_dequant, reference.gather_dequant):
        with pytest.raises(ValueError, match=message):
            op(**(arguments | change))
