"""Values in a step's tensors, where they can be seen: what leads out is refused, and padding may hold anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from airi.engine.backends.cuda.reference_ops import ReferenceOps
from airi.kernels import blocks, reference, tokens
from airi.kernels.attention_plan import AttentionPlan, DecodeWorkspace
from airi.kernels.decode import paged_decode
from airi.kernels.layout import GRANULE_BYTES, KvLayout
from airi.kernels.plan import plan_attention
from airi.kernels.prefill import paged_prefill
from airi.kernels.qkv_post import qkv_post

from .paged import Case, int32, make_case

Change = dict[str, Any]
Call = Callable[..., None]
HOST = ReferenceOps()
ROWS = [(1, 40), (3, 20), (0, 0)]
"""Of a table with four lines (rows 0 to 2 in 1, 2, 3) and four blocks of 16 keys each."""
LAST = 2**31 - 1


def a_case(**options: Any) -> Case:
    return make_case(ROWS, head_dim=32, block_size=16, **options)


def of_rows(case: Case) -> Change:
    batch = case.batch
    names = ("block_table", "slots", "query_start", "seq_lens")
    return {
        "arena": case.arena,
        "layout": case.layout,
        "layer_offset": case.layer_offset,
        **{name: getattr(batch, name).clone() for name in names},
    }


def attends(op: Call, case: Case, change: Change) -> None:
    """A step whose plan was made before something changed."""
    batch, (_, count, group, dim) = case.batch, case.q.shape
    plan = AttentionPlan.allocate("cpu", 4, 4, 4)
    plan_attention(batch.query_start, batch.seq_lens, plan, num_kv_heads=2, tile_queries=16, num_sms=132)
    is_decode = "decode" in op.__name__
    more = (
        {"workspace": DecodeWorkspace.allocate("cpu", 4, 2 * group, dim)} if is_decode else {"num_tiles": 4}
    )
    rows = of_rows(case) | {"plan": plan, "out": torch.zeros(count, 2 * group, dim), "scale": 1.0}
    op(case.q, **(rows | more | change))


def gathers(op: Call, case: Case, change: Change) -> None:
    rows = of_rows(case)
    del rows["query_start"]
    if "entry" in change:
        rows["block_table"][2, 1] = change["entry"]
        change = {}
    floats = KvLayout.block_major(block_size=16, num_kv_heads=2, head_dim=32, dtype=torch.float32)
    scratch = torch.zeros(5 * blocks.block_granules(floats) * GRANULE_BYTES, dtype=torch.uint8)
    given = {"starts": int32([0, 3, 5, 5]), "scratch": scratch, "scratch_layout": floats}
    op(**(rows | given | {"scratch_table": torch.zeros((3, 4), dtype=torch.int32)} | change))


def maps(op: Call, case: Case, change: Change) -> None:
    rows = of_rows(case)
    taken = {name: rows[name] for name in ("query_start", "seq_lens", "slots", "block_table")}
    entries = change.pop("out_entries", int32([0] * 4))
    op(**(taken | {"out_entries": entries, "block_size": 16} | change))


def writes(op: Call, case: Case, change: Change) -> None:
    rows = of_rows(case)
    kept = {name: rows[name] for name in ("arena", "layout", "layer_offset")}
    given = {"qkv": torch.zeros(2, 8, 32), "cos_sin": torch.ones(50, 32), "positions": int32([1, 49])}
    given |= {"entries": int32([0, -1]), "q_out": torch.zeros(2, 2, 2, 32)}
    op(**(kept | given | change))


ATTENTION = [paged_decode, paged_prefill, reference.paged_prefill, HOST.paged_decode, HOST.paged_prefill]
GATHERS = [blocks.gather_dequant, reference.gather_dequant]
MAPS = [tokens.map_tokens, HOST.map_tokens]
WRITES = [qkv_post, HOST.qkv_post]


def both_lines(entry: int) -> torch.Tensor:
    table = a_case().batch.block_table.clone()
    table[1:3, 0] = entry
    return table


@pytest.mark.parametrize("op", ATTENTION, ids=lambda op: f"{op.__module__.split('.')[-1]} {op.__name__}")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": int32([4, 4, 0])}, r"slots\[[01]\] must be 0 to 3, got 4"),
        ({"slots": int32([-1, -1, 0])}, r"slots\[[01]\] must be 0 to 3, got -1"),
        ({"seq_lens": int32([65, 65, 0])}, r"seq_lens\[[01]\] must be 0 to 64, got 65"),
        ({"block_table": both_lines(-1)}, r"block_table\[[12], 0\] must be 0 to \d+, got -1"),
        ({"block_table": both_lines(LAST)}, r"block_table\[[12], 0\] must be 0 to \d+, got 2147483647"),
        ({"query_start": int32([9, 10, 13, 13])}, r"query_start\[[01]\] must be 0 to 4, got (9|10)"),
    ],
)
def test_attention_refuses_what_leads_out_of_table_and_arena(op: Call, change: Change, message: str) -> None:
    attends(op, a_case(), {})
    with pytest.raises(ValueError, match=message):
        attends(op, a_case(), change)


def test_the_last_block_of_an_arena_is_the_last_that_may_be_read() -> None:
    case = make_case([(1, 40)], head_dim=32, block_size=16, finite=True)
    block = -(-case.layout.layer_bytes // GRANULE_BYTES)
    last = len(case.arena) // GRANULE_BYTES - block
    attends(paged_decode, case, {"block_table": int32([[0] * 4, [last] * 4]), "layer_offset": 0})
    with pytest.raises(ValueError, match=rf"block_table\[1, 0\] must be 0 to {last}, got {last + 1}"):
        attends(paged_decode, case, {"block_table": int32([[0] * 4, [last + 1] * 4]), "layer_offset": 0})


def test_a_plan_of_longer_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plan.items\[0, 2\] must be at most its row's 39 keys, got 40"):
        attends(paged_decode, a_case(), {"seq_lens": int32([39, 20, 0])})


def test_a_plan_of_other_rows_is_refused() -> None:
    plan = AttentionPlan.allocate("cpu", 4, 2, 2)
    plan.counts[0] = 3
    with pytest.raises(ValueError, match=r"plan.counts\[0\] must be 0 to the plan's 2 items, got 3"):
        attends(paged_decode, a_case(), {"plan": plan})
    plan.counts[0], plan.items[1, 0] = 2, 3
    with pytest.raises(ValueError, match=r"plan.items' rows\[1\] must be 0 to 2, got 3"):
        attends(paged_decode, a_case(), {"plan": plan})
    plan.tiles[1, 0] = 3
    with pytest.raises(ValueError, match=r"plan.tiles' rows\[1\] must be -1 to 2, got 3"):
        attends(paged_prefill, a_case(), {"plan": plan, "num_tiles": 2})


@pytest.mark.parametrize("op", ATTENTION, ids=lambda op: f"{op.__module__.split('.')[-1]} {op.__name__}")
def test_padding_and_what_a_window_hides_may_hold_anything(op: Call) -> None:
    case = make_case([(1, 90), (3, 90), (0, 0)], head_dim=32, block_size=16)
    table = case.batch.block_table.clone()
    table[:, :4] = -1  # keys 0 to 63
    table[0], table[3], table[:, 6:] = LAST, LAST, LAST
    padded = {"block_table": table, "slots": int32([1, 2, -5]), "seq_lens": int32([90, 90, LAST])}
    attends(op, case, padded | {"window": 20})
    with pytest.raises(ValueError, match=r"block_table\[[12], [01]\] must be 0 to \d+, got -1"):
        attends(op, case, padded | {"window": 60})


@pytest.mark.parametrize("op", GATHERS, ids=["kernel", "specification"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": int32([1, 4, 0])}, r"slots\[1\] must be 0 to 3, got 4"),
        ({"seq_lens": int32([40, 65, 0])}, r"seq_lens\[1\] must be 0 to 64, got 65"),
        ({"entry": -1}, r"block_table\[2, 1\] must be 0 to \d+, got -1"),
        ({"entry": LAST}, r"block_table\[2, 1\] must be 0 to \d+, got 2147483647"),
        ({"starts": int32([1, 3, 5, 5])}, r"starts\[0\] must be 0, got 1"),
        ({"starts": int32([0, 3, 2, 5])}, r"starts\[2\] must be 3 or more, got 2"),
        ({"starts": int32([0, 5, 5, 5])}, "blocks of row 0 must be the scratch_table's 4 at most, got 5"),
    ],
)
def test_a_gather_refuses_what_leads_out_of_table_and_arena(op: Call, change: Change, message: str) -> None:
    case = a_case(kv_dtype=torch.int8)
    gathers(op, case, {})
    gathers(op, case, {"slots": int32([1, 2, -7]), "seq_lens": int32([40, 20, LAST])})
    with pytest.raises(ValueError, match=message):
        gathers(op, case, change)


@pytest.mark.parametrize("op", MAPS, ids=["kernel", "host"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": int32([1, 4, 0])}, r"slots\[1\] must be 0 to 3, got 4"),
        ({"slots": int32([-1, 2, 0])}, r"slots\[0\] must be 0 to 3, got -1"),
        ({"seq_lens": int32([40, 65, 0])}, r"seq_lens\[1\] must be 0 to 64, got 65"),
        ({"seq_lens": int32([-1, 20, 0])}, r"seq_lens\[0\] must be 0 to 64, got -1"),
        ({"query_start": int32([0, 2, 1, 1])}, r"query_start\[2\] must be 2 or more, got 1"),
        ({"out_entries": int32([0] * 3)}, r"query_start\[2\] must be 0 to 3, got 4"),
    ],
)
def test_tokens_beyond_their_table_are_refused(op: Call, change: Change, message: str) -> None:
    maps(op, a_case(), {"slots": int32([1, 2, -1]), "seq_lens": int32([40, 20, LAST])})
    with pytest.raises(ValueError, match=message):
        maps(op, a_case(), dict(change))


@pytest.mark.parametrize("op", WRITES, ids=["kernel", "host"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entries": int32([LAST, -1])}, r"entries\[0\] must be 0 to \d+, got 2147483647"),
        ({"entries": int32([-1, 0]), "positions": int32([0, 50])}, r"positions\[1\] must be 0 to 49, got 50"),
        ({"positions": int32([-1, 0])}, r"positions\[0\] must be 0 to 49, got -1"),
    ],
)
def test_nothing_is_written_beyond_the_arena(op: Call, change: Change, message: str) -> None:
    writes(op, a_case(), {"positions": int32([1, LAST if op is qkv_post else 0])})
    with pytest.raises(ValueError, match=message):
        writes(op, a_case(), change)


@pytest.mark.parametrize("op", [blocks, reference], ids=["kernel", "specification"])
def test_blocks_are_copied_and_zeroed_inside_the_arena(op: Any) -> None:
    arena = torch.zeros(8 * GRANULE_BYTES, dtype=torch.uint8)
    op.copy_blocks(arena, int32([[-1, 99], [0, 6]]), 2)
    for pair, wrong in (([7, 0], 7), ([0, 7], 7), ([0, -1], -1)):
        with pytest.raises(ValueError, match=rf"pairs\[1\] must be 0 to 6, got {wrong}"):
            op.copy_blocks(arena, int32([[2, 4], pair]), 2)
    op.zero_granules(arena, int32([[99, 0], [7, 1]]))
    for span, message in (
        ([8, 1], r"^ranges\[1\] must be 0 to 7, got 8"),
        ([-1, 2], r"^ranges\[1\] must be 0 to 7, got -1"),
        ([7, 2], r"^ends of ranges\[1\] must be 0 to 8, got 9"),
        ([7, LAST], r"^ends of ranges\[1\] must be 0 to 8, got 2147483654"),
    ):
        with pytest.raises(ValueError, match=message):
            op.zero_granules(arena, int32([[0, 0], span]))


def test_a_flagged_row_has_a_slot_and_a_token() -> None:
    flags, last = torch.tensor([4, 0], dtype=torch.uint8), int32([7, 8])
    tokens.fill_tokens(int32([0, 0]), last, int32([0, 1, 2]), int32([1, 99]), flags, 4)
    with pytest.raises(ValueError, match=r"slots\[0\] must be 0 to 1, got 2"):
        tokens.fill_tokens(int32([0, 0]), last, int32([0, 1, 2]), int32([2, 0]), flags, 4)
    with pytest.raises(ValueError, match=r"query_start\[0\] must be 0 to 2, got 5"):
        tokens.fill_tokens(int32([0, 0]), last, int32([5, 6, 6]), int32([0, 0]), flags, 4)
