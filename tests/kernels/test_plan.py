"""The planner: what the device, numpy and the specification cut attention into."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airi.kernels import reference
from airi.kernels.attention_plan import NO_PARTIAL, NO_TILE, AttentionPlan, HostPlan, count_items
from airi.kernels.plan import items_per_row, plan_attention, plan_on_host

LENGTHS = st.one_of(
    st.integers(0, 300), st.sampled_from([127, 128, 129, 1023, 1024, 1025, 4097]), st.integers(0, 200_000)
)
ROWS = st.lists(st.tuples(st.sampled_from([0, 1, 1, 1, 2, 5, 33, 64, 65]), LENGTHS), max_size=24)

NUM_SMS = 132


def rows_of(rows: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """query_start and seq_lens of rows (queries, keys that came before them); a row without a query has no key."""
    queries = torch.tensor([0] + [count for count, _ in rows], dtype=torch.int32)
    lens = [count + before if count else 0 for count, before in rows]
    return queries.cumsum(0).int(), torch.tensor(lens, dtype=torch.int32)


def poisoned(max_rows: int, max_items: int, max_tiles: int) -> AttentionPlan:
    plan = AttentionPlan.allocate("cpu", max_rows, max_items, max_tiles)
    for buffer in (plan.items, plan.row_items, plan.tiles, plan.counts):
        buffer.fill_(0x5A5A5A5A)
    return plan


def host_view(plan: AttentionPlan, rows: int) -> HostPlan:
    return HostPlan(
        items=plan.items[: int(plan.counts[0])].numpy(),
        row_items=plan.row_items[: rows + 1].numpy(),
        tiles=plan.tiles.numpy(),
        counts=plan.counts.numpy(),
    )


def three_plans(
    rows: list[tuple[int, int]], max_items: int, max_tiles: int, **options: Any
) -> tuple[HostPlan, HostPlan, HostPlan]:
    """By the kernel, by the specification, and by numpy."""
    options = {"num_sms": NUM_SMS, **options}
    query_start, seq_lens = rows_of(rows)
    views = []
    for function in (plan_attention, reference.plan_attention):
        plan = poisoned(len(rows), max_items, max_tiles)
        function(query_start, seq_lens, plan, **options)
        assert bool((plan.items[int(plan.counts[0]) :] == 0x5A5A5A5A).all())
        views.append(host_view(plan, len(rows)))
    twin = plan_on_host(
        query_start.numpy(), seq_lens.numpy(), max_items=max_items, max_tiles=max_tiles, **options
    )
    return views[0], views[1], twin


def assert_same(first: HostPlan, second: HostPlan) -> None:
    for name in ("items", "row_items", "tiles", "counts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def assert_partition(plan: HostPlan, rows: list[tuple[int, int]], window: int, tile_queries: int) -> None:
    """Every visible (row, key) lies in one item, every (row, tile) is there once, in any order."""
    covered: dict[int, list[tuple[int, int]]] = {}
    for index, (row, begin, end, partial) in enumerate(plan.items.tolist()):
        covered.setdefault(row, []).append((begin, end))
        first, last = plan.row_items[row : row + 2].tolist()
        assert first <= index < last
        assert partial == (index if last - first > 1 else NO_PARTIAL)
    wanted_tiles = []
    for row, (count, before) in enumerate(rows):
        spans = covered.pop(row, [])
        if count == 1:
            end = before + 1
            low = max(0, end - window) if window else 0
            assert [low, *(stop for _, stop in spans)] == [*(begin for begin, _ in spans), end]
        else:
            assert not spans
            wanted_tiles += [(row, tile) for tile in range(-(-count // tile_queries) if count else 0)]
    assert not covered
    placed = [tuple(tile) for tile in plan.tiles.tolist() if tile[0] != NO_TILE]
    assert sorted(placed) == wanted_tiles


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=ROWS,
    mode=st.sampled_from(["invariant", "fast"]),
    window=st.sampled_from([0, 0, 1, 100, 4096]),
    num_kv_heads=st.sampled_from([1, 8, 20]),
    tile_queries=st.sampled_from([1, 16, 25]),
)
def test_items_and_tiles_partition_all_rows(
    rows: list[tuple[int, int]], mode: Any, window: int, num_kv_heads: int, tile_queries: int
) -> None:
    options: dict[str, Any] = {
        "mode": mode, "window": window, "num_kv_heads": num_kv_heads, "tile_queries": tile_queries
    }  # fmt: skip
    kernel, specified, twin = three_plans(rows, 24 * 2000, 24 * 66, **options)
    assert_same(kernel, specified)
    assert_same(kernel, twin)
    assert kernel.counts[2] == 0
    assert_partition(kernel, rows, window, tile_queries)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=ROWS,
    mode=st.sampled_from(["invariant", "fast"]),
    max_items=st.integers(0, 40),
    max_tiles=st.integers(0, 8),
)
def test_what_finds_no_room_is_counted_and_never_written(
    rows: list[tuple[int, int]], mode: Any, max_items: int, max_tiles: int
) -> None:
    plans = three_plans(rows, max_items, max_tiles, mode=mode, num_kv_heads=8, tile_queries=16)
    assert_same(plans[0], plans[1])
    assert_same(plans[0], plans[2])
    whole = three_plans(rows, 24 * 2000, 24 * 66, mode=mode, num_kv_heads=8, tile_queries=16)[2]
    items, tiles, lost, _ = plans[0].counts.tolist()
    if mode == "invariant":
        assert items + tiles + lost == whole.counts[:2].sum()
        np.testing.assert_array_equal(plans[0].items, whole.items[:items])
    elif max_items >= len(rows):
        assert items == plans[0].row_items[-1]
        assert lost == whole.counts[1] - tiles


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 1030, 4096])
def test_rows_beyond_one_chunk_are_planned_alike(rows: int) -> None:
    lengths = np.random.default_rng(rows).integers(0, 3000, rows)
    made = [(int(length % 4 != 0) * (1 + 30 * int(length % 7 == 0)), int(length)) for length in lengths]
    for mode in ("invariant", "fast"):
        kernel, _, twin = three_plans(made, 60_000, 5000, mode=mode, num_kv_heads=8, tile_queries=16)
        assert_same(kernel, twin)
        assert kernel.counts[2] == 0


def test_in_the_invariant_mode_a_row_is_cut_by_its_own_length_alone() -> None:
    alone = three_plans([(1, 5000)], 100, 0, num_kv_heads=8, tile_queries=16)[0]
    mixed = three_plans([(1, 90_000), (1, 5000), (7, 100)], 500, 9, num_kv_heads=8, tile_queries=16)[0]
    np.testing.assert_array_equal(alone.items[:, 1:3], mixed.items[mixed.items[:, 0] == 1][:, 1:3])


def test_the_host_counts_the_items_that_the_kernel_makes() -> None:
    rows = [(1, n - 1) for n in (1, 128, 129, 2113, 4096, 4097, 16896, 16897, 100_000)]
    for window in (0, 1000):
        kernel = three_plans(rows, 1000, 0, num_kv_heads=8, tile_queries=16, window=window)[0]
        lens = [before + 1 for _, before in rows]
        assert count_items(lens, num_kv_heads=8, num_sms=NUM_SMS, window=window) == kernel.counts[0]
        per_row = items_per_row(lens, num_kv_heads=8, num_sms=NUM_SMS, window=window)
        np.testing.assert_array_equal(np.diff(kernel.row_items), per_row)


def test_a_row_of_one_item_writes_straight_to_the_output() -> None:
    kernel = three_plans([(1, 99), (1, 299)], 10, 0, num_kv_heads=8, tile_queries=16)[0]
    assert kernel.items.tolist() == [
        [0, 0, 100, NO_PARTIAL],
        [1, 0, 128, 1],
        [1, 128, 256, 2],
        [1, 256, 300, 3],
    ]
    assert kernel.counts.tolist() == [4, 0, 0, 3]


def test_the_last_tile_of_a_row_comes_first() -> None:
    kernel = three_plans([(33, 0), (0, 0), (2, 7)], 0, 6, num_kv_heads=8, tile_queries=16)[0]
    assert kernel.tiles.tolist() == [[0, 2], [0, 1], [0, 0], [2, 0], [NO_TILE, NO_TILE], [NO_TILE, NO_TILE]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_lens": torch.zeros(3, dtype=torch.int64)}, r"seq_lens must be int32 \[any\], got int64 \[3\]"),
        ({"query_start": torch.zeros(3, dtype=torch.int32)}, r"query_start must be int32 \[4\], got int32 \[3\]"),
        ({"plan": AttentionPlan.allocate("cpu", 2, 4, 4)}, "seq_lens must be at most 2 rows, got 3 rows"),
        ({"mode": "quick"}, "mode must be invariant or fast, got quick"),
        ({"window": -1}, "window must be 0 .none. or more, got -1"),
        ({"tile_queries": 0}, "tile_queries must be 1 or more, got 0"),
        ({"num_kv_heads": 0}, "num_kv_heads must be 1 or more, got 0"),
        ({"num_sms": 0}, "num_sms must be 1 or more, got 0"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "query_start": torch.zeros(4, dtype=torch.int32),
        "seq_lens": torch.zeros(3, dtype=torch.int32),
        "plan": AttentionPlan.allocate("cpu", 4, 4, 4),
        "num_kv_heads": 8,
        "tile_queries": 16,
        "num_sms": NUM_SMS,
    } | change
    with pytest.raises(ValueError, match=message):
        plan_attention(**arguments)
    with pytest.raises(ValueError, match="max_items must be 0 or more, got -1"):
        AttentionPlan.allocate("cpu", 1, -1, 1)
