"""The pointer prefill kernel against dense attention in float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from airi.kernels import reference
from airi.kernels.arch import ARCHS, Arch
from airi.kernels.attention_plan import AttentionPlan
from airi.kernels.layout import KvLayout
from airi.kernels.plan import plan_attention
from airi.kernels.prefill import paged_prefill, prefill_tiles

from .paged import Case, Tiled, int32, make_case
from .prefills import SM_90, check, chunk, run
from .tolerances import RELATIVE, relative_error


@pytest.mark.parametrize("options", [{}, {"window": 7}, {"softcap": 2.0}])
def test_the_specification_agrees_with_dense_attention(options: dict[str, Any]) -> None:
    rows = [(2, 2), (1, 5), (9, 40), (0, 0), (16, 31)]
    check(make_case(rows, head_dim=32, block_size=8, group=3), op=reference.paged_prefill, **options)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_every_head_dim_agrees_with_dense_attention(head_dim: int) -> None:
    check(make_case([(5, 21)], head_dim=head_dim, block_size=16, kv_heads=1))


@pytest.mark.parametrize("group", range(1, 17))
def test_every_group_agrees_with_dense_attention(group: int) -> None:
    # The query behind a tile of 16 rows, whose rows that tile's last program rows are, sees one tile of 32 keys more.
    rows = [(16 // group + 2, 34), (1, 9)]
    check(make_case(rows, head_dim=32, group=group, kv_heads=1, block_size=32))


@pytest.mark.parametrize("block_size", [8, 16, 24, 32, 64, 128, 256])
def test_every_block_size_agrees_with_dense_attention(block_size: int) -> None:
    check(make_case([(3, 70), (2, 2)], head_dim=32, kv_heads=1, block_size=block_size))


@pytest.mark.parametrize("seed", range(3))
def test_ragged_rows_agree_and_nothing_but_their_keys_and_values_is_read(seed: int) -> None:
    rows = [(2, 2), (1, 5), (7, 7), (8, 8), (9, 9), (0, 0), (16, 31), (17, 32), (2, 33), (40, 40)]
    check(make_case(rows, head_dim=32, block_size=8, seed=seed, order=seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_size", [16, 64])
def test_half_precision_stays_within_its_tolerance(dtype: torch.dtype, block_size: int) -> None:
    check(make_case([(66, 130)], group=3, kv_heads=1, dtype=dtype, block_size=block_size))


@pytest.mark.parametrize("window", [1, 7, 32, 33, 1000])
def test_a_window_hides_what_lies_before_it(window: int) -> None:
    check(make_case([(20, 75), (17, 17)], head_dim=32, kv_heads=1, block_size=16), window=window)


def test_a_window_may_begin_with_the_last_key_of_a_tile() -> None:
    """Key 127 of tiles of 32, 64 and 128."""
    case = make_case([(3, 139)], head_dim=32, kv_heads=1, block_size=64)
    expected, _ = case.expected(scale=0.1, window=10)
    assert relative_error(run(case, scale=0.1, window=10)[0], expected) <= RELATIVE[torch.float32]


def test_blocks_before_the_window_may_be_gone() -> None:
    case = make_case([(8, 150)], head_dim=32, kv_heads=1, block_size=32)
    expected, _ = case.expected(scale=1.0, window=40)
    case.batch.block_table[1, :3] = case.batch.block_table[
        0, 0
    ]  # NaN: keys 0 to 95, of which 103 is the first seen
    out, _ = run(case, scale=1.0, window=40)
    assert relative_error(out, expected) <= RELATIVE[torch.float32]


@pytest.mark.parametrize("window", [0, 9])
def test_scores_are_capped(window: int) -> None:
    case = make_case([(20, 45)], head_dim=32, kv_heads=1, block_size=16)
    case = dataclasses.replace(case, q=case.q * 30)
    check(case, softcap=5.0, window=window)


def test_block_major_and_layer_major_give_the_same_bits() -> None:
    shape: dict[str, Any] = {"rows": [(20, 45), (3, 3)], "head_dim": 32, "block_size": 16}
    near, far = (run(make_case(**shape, layer_major=major)) for major in (False, True))
    assert torch.equal(near[0], far[0])
    assert torch.equal(near[1], far[1])


def test_any_layout_inside_a_block_gives_the_same_bits() -> None:
    """[K|V][token][kv_head][dim] in place of [kv_head][K|V][token][dim]."""
    case = make_case([(20, 45)], head_dim=32, block_size=16)
    row, layout = 32 * 4, case.layout
    other = dataclasses.replace(layout, head_stride=row, kv_stride=16 * 2 * row, token_stride=2 * row)
    arena = torch.full_like(case.arena, 0xFF)
    for entry in case.batch.block_table[1, :3].tolist():
        block = layout.block(case.arena, entry, case.layer_offset)
        other.block(arena, entry, case.layer_offset).copy_(block)
    moved = dataclasses.replace(case, layout=other, arena=arena)
    assert torch.equal(run(case)[0], run(moved)[0])


def test_where_blocks_lie_does_not_change_a_bit() -> None:
    outs = [run(make_case([(20, 45), (9, 31)], head_dim=32, block_size=8, order=order)) for order in range(3)]
    assert all(torch.equal(out, outs[0][0]) for out, _ in outs)


@pytest.mark.parametrize("options", [{}, {"window": 21}, {"softcap": 2.0}])
def test_a_prompt_in_chunks_gives_the_bits_of_the_whole(options: dict[str, Any]) -> None:
    whole = make_case([(70, 70)], head_dim=32, kv_heads=1, block_size=16)
    expected, _ = run(whole, **options)
    for begin, end in (
        (0, 32),
        (32, 70),
    ):  # whole query tiles: numpy's products depend on a row's place in its tile
        assert torch.equal(run(chunk(whole, begin, end), **options)[0], expected[begin:end])
    for begin, end in ((0, 37), (37, 70)):
        part, _ = run(chunk(whole, begin, end), **options)
        assert relative_error(part, expected[begin:end]) <= 1e-6


def test_a_row_gives_the_same_bits_in_any_company() -> None:
    rows = [(12, 30), (40, 40), (5, 64)]
    case = make_case(rows, head_dim=32, kv_heads=1, block_size=16)
    together, _ = run(case)
    batch = case.batch
    for row in range(3):
        span = slice(int(batch.query_start[row]), int(batch.query_start[row + 1]))
        alone = dataclasses.replace(
            batch,
            query_start=int32([0, span.stop - span.start]),
            seq_lens=batch.seq_lens[row : row + 1],
            slots=batch.slots[row : row + 1],
        )
        out, _ = run(dataclasses.replace(case, batch=alone, q=case.q[:, span].contiguous()))
        assert torch.equal(out, together[span])


def test_queries_and_outputs_may_have_any_strides() -> None:
    case = make_case([(20, 45)], head_dim=32, block_size=16)
    packed, _ = run(case)
    wide = torch.randn(20, 2, 2, 48)
    wide[..., :32] = case.q.permute(1, 0, 2, 3)
    strided = wide[..., :32].permute(1, 0, 2, 3)
    out = torch.full((20, 6, 40), math.nan)
    run(dataclasses.replace(case, q=strided), out=out[:, 1:5, :32])
    assert torch.equal(out[:, 1:5, :32], packed)
    assert bool(out[:, 5].isnan().all())
    assert bool(out[..., 32:].isnan().all())


def test_a_query_without_a_key_gets_zeros_and_minus_infinity() -> None:
    case = make_case([(3, 3)], head_dim=32, kv_heads=1, block_size=16)
    for keys in (0, 2):  # fewer keys than queries: the first ones stand before the sequence
        batch = dataclasses.replace(case, batch=_short(case, keys))
        out, lse = run(batch)
        assert not out[: 3 - keys].any()
        assert bool((lse[: 3 - keys] == -math.inf).all())
        assert bool(out.isfinite().all())


def _short(case: Case, keys: int) -> Any:
    batch = dataclasses.replace(case.batch)
    object.__setattr__(batch, "seq_lens", int32([keys]))
    return batch


def test_not_a_number_stays_in_its_row() -> None:
    case = make_case([(20, 45), (9, 31)], head_dim=32, kv_heads=1, block_size=16)
    clean, _ = run(case)
    case.q[:, 3] = math.nan
    out, _ = run(case)
    assert bool(out[3].isnan().all())
    kept = torch.arange(29) != 3
    assert torch.equal(out[kept], clean[kept])


def test_the_planners_tiles_cover_every_row_of_a_chunk() -> None:
    case = make_case([(2, 2), (1, 5), (40, 61), (0, 0), (17, 31)], head_dim=32, kv_heads=1, block_size=16)
    queries = prefill_tiles(SM_90, 32, 2, torch.float32, 16).tile_queries
    plan = AttentionPlan.allocate("cpu", max_rows=8, max_items=8, max_tiles=16)
    batch = case.batch
    plan_attention(batch.query_start, batch.seq_lens, plan, num_kv_heads=1, tile_queries=queries, num_sms=132)
    planned, _ = run(case, plan=plan, num_tiles=16)
    expected, _ = run(case)
    assert torch.equal(planned.nan_to_num(7), expected.nan_to_num(7))


def test_nothing_is_launched_for_no_tiles() -> None:
    case = make_case([(1, 9)], head_dim=32, block_size=16)
    assert bool(run(case, spare=0)[0].isnan().all())


@pytest.mark.parametrize("block_size", [16, 64])
def test_offsets_beyond_two_gigabytes_reach_their_blocks(block_size: int) -> None:
    """Blocks behind 2^31 elements of two bytes; the rest of the arena is not touched and takes no memory."""
    size = 2**32 // 4096 + 64
    arena = torch.empty(size * 4096, dtype=torch.uint8)
    case = make_case([(4, 24)], head_dim=32, block_size=block_size, dtype=torch.float16)
    near, _ = run(case)
    table = case.batch.block_table.clone()
    step = -(-3 * case.layout.layer_bytes // 4096)
    for column, entry in enumerate(table[1, : -(-24 // block_size)].tolist()):
        far = size - (column + 1) * step
        block = slice(entry * 4096, (entry + step) * 4096)
        arena[far * 4096 : (far + step) * 4096] = case.arena[block]
        table[1, column] = far
    moved = dataclasses.replace(case, arena=arena, batch=dataclasses.replace(case.batch, block_table=table))
    assert torch.equal(run(moved)[0], near)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 20, 2, 32, dtype=torch.float64)}, "q must be float32 or float16 or bfloat16"),
        ({"q": torch.zeros(3, 20, 2, 32)}, r"q must be .* \[2, any, any, 32\], got float32 \[3, 20, 2, 32\]"),
        ({"q": torch.zeros(2, 20, 2, 64)[..., ::2]}, "q must be contiguous in its last dimension"),
        ({"q": torch.zeros(2, 20, 17, 32)}, "query heads per kv head must be 1 to 16, got 17"),
        (
            {"q": torch.zeros(2, 20, 2, 32).half()},
            "layout.dtype must be torch.float16, as q .*, got torch.float32",
        ),
        (
            {"layout": KvLayout.block_major(block_size=16, num_kv_heads=2, head_dim=32, dtype=torch.int8)},
            r"layout.dtype must be torch.float32, as q \(quantised blocks are multiplied out by gather_dequant"
            r" first\), got torch.int8",
        ),
        ({"arena": torch.zeros(8, 4096, dtype=torch.uint8)}, "arena must be uint8"),
        ({"arena": torch.zeros(5000, dtype=torch.uint8)}, "arena must be a multiple of 4096, got 5000 bytes"),
        ({"block_table": torch.zeros(2, 3)}, r"block_table must be int32 \[any, any\], got float32"),
        ({"block_table": torch.zeros(2, 6, dtype=torch.int32)[:, ::2]}, "block_table must be contiguous"),
        ({"slots": int32([0, 1])}, r"slots must be int32 \[1\], got int32 \[2\]"),
        ({"query_start": int32([0])}, r"query_start must be int32 \[2\]"),
        ({"seq_lens": torch.zeros(1, dtype=torch.int64)}, "seq_lens must be int32"),
        ({"out": torch.zeros(20, 5, 32)}, r"out must be float32 \[20, 4, 32\], got float32 \[20, 5, 32\]"),
        ({"out": torch.zeros(20, 4, 32, device="meta")}, "out must be on cpu, got meta"),
        ({"lse": torch.zeros(20, 4).half()}, "lse must be float32"),
        ({"plan": Tiled(tiles=int32([[0, 0, 0]]))}, "plan.tiles must be int32"),
        ({"num_tiles": 4}, "num_tiles must be 0 to the plan's 3, got 4"),
        ({"scale": math.nan}, "scale must be finite, got nan"),
        ({"softcap": -1.0}, "softcap must be 0"),
        ({"window": -1}, "window must be 0"),
        ({"layer_offset": 2}, "layer_offset must be a multiple of 4 inside the arena's"),
        ({"layer_offset": 2**40}, "layer_offset must be a multiple of 4 inside the arena's"),
        ({"variant": "fast"}, r"variant must be one of \('auto', 'tma', 'pointer'\), got fast"),
    ],
)
def test_a_bad_argument_is_named(change: dict[str, Any], message: str) -> None:
    case = make_case([(20, 45)], head_dim=32, block_size=16)
    batch = case.batch
    arguments: dict[str, Any] = {
        "q": case.q, "arena": case.arena, "layout": case.layout, "block_table": batch.block_table,
        "slots": batch.slots, "query_start": batch.query_start, "seq_lens": batch.seq_lens,
        "plan": Tiled(tiles=int32([[0, 0], [0, 1], [-1, 0]])), "out": torch.zeros(20, 4, 32), "scale": 1.0,
        "num_tiles": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        paged_prefill(**(arguments | change))


@pytest.mark.parametrize(
    ("head_dim", "group", "dtype", "block_size", "message"),
    [
        (48, 1, torch.float16, 16, r"head_dim must be one of \(32, 64, 80, 96, 128, 256\), got 48"),
        (64, 0, torch.float16, 16, "query heads per kv head must be 1 to 16, got 0"),
        (64, 1, torch.float64, 16, "dtype must be"),
        (64, 1, torch.int8, 16, "dtype must be one of .*, got torch.int8"),
        (64, 1, torch.float16, 4, "block_size must be 8 to 256, got 4"),
    ],
)
def test_there_are_tiles_for_nothing_else(
    head_dim: int, group: int, dtype: torch.dtype, block_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prefill_tiles(SM_90, head_dim, group, dtype, block_size)


@pytest.mark.parametrize("arch", ARCHS.values(), ids=lambda arch: arch.name)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tiles_hold_every_group_and_fit_shared_memory(arch: Arch, head_dim: int, dtype: torch.dtype) -> None:
    for group in range(1, 17):
        tiles = prefill_tiles(arch, head_dim, group, dtype, 64)
        assert tiles.block_m >= 16
        assert 0 <= tiles.block_m - tiles.tile_queries * group < group
        row = (1 << (head_dim - 1).bit_length()) * dtype.itemsize
        assert 2 * tiles.tile * row * max(1, tiles.num_stages - 1) <= arch.max_shared
