"""Split decoding against dense attention in float64, and what must not change a bit of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from airi.kernels import reference
from airi.kernels.arch import ARCHS, Arch
from airi.kernels.attention_plan import AttentionPlan, DecodeWorkspace
from airi.kernels.decode import paged_decode
from airi.kernels.decode_tiles import BLOCK_SIZES, HEAD_DIMS, KV_DTYPES, decode_tiles
from airi.kernels.layout import GRANULE_BYTES, KvLayout
from airi.kernels.plan import plan_attention

from .paged import Case, int32, make_case, sparse_arena
from .tolerances import LSE, RELATIVE, RELATIVE_QUANTISED, relative_error

FP8, INT8 = torch.float8_e4m3fn, torch.int8
# Rows of (queries, keys); the third and fourth do not decode.
RAGGED = [(1, 1), (1, 63), (3, 40), (0, 0), (1, 64), (1, 65), (1, 300)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run wrote; NaN where it did not."""

    out: torch.Tensor
    lse: torch.Tensor

    def row(self, token: int) -> tuple[list[int], list[int]]:
        """The bits of one token's results."""
        return bits(self.out[token]), bits(self.lse[token])


def bits(x: torch.Tensor) -> list[int]:
    values: list[int] = x.contiguous().view(torch.uint8).flatten().tolist()
    return values


def run(
    case: Case,
    *,
    op: Callable[..., None] = paged_decode,
    plan: AttentionPlan | None = None,
    num_sms: int = 132,
    out_dtype: torch.dtype | None = None,
    **options: Any,
) -> Result:
    """One step over buffers full of NaN."""
    kv_heads, tokens, group, head_dim = case.q.shape
    batch = case.batch
    if plan is None:
        plan = AttentionPlan.allocate("cpu", len(batch.seq_lens), 96, 8)
        plan_attention(
            batch.query_start, batch.seq_lens, plan, num_kv_heads=kv_heads, tile_queries=16,
            window=options.get("window", 0), num_sms=num_sms,
        )  # fmt: skip
        assert int(plan.counts[2]) == 0
    workspace = DecodeWorkspace.allocate("cpu", len(plan.items), kv_heads * group, head_dim)
    workspace.acc.fill_(math.nan)
    workspace.lse.fill_(math.nan)
    out = torch.full((tokens, kv_heads * group, head_dim), math.nan, dtype=out_dtype or case.q.dtype)
    lse = torch.full((tokens, kv_heads * group), math.nan)
    op(
        case.q, case.arena, case.layout, batch.block_table, batch.slots, batch.query_start, batch.seq_lens,
        plan, workspace, out,
        **{"scale": head_dim**-0.5, "layer_offset": case.layer_offset, "lse": lse} | options,
    )  # fmt: skip
    return Result(out=out, lse=lse)


def decoding(case: Case) -> torch.Tensor:
    """The tokens of rows with one query."""
    lens = case.batch.query_start.diff()
    return torch.repeat_interleave(lens == 1, lens.long())


def check(case: Case, *, op: Callable[..., None] = paged_decode, **options: Any) -> None:
    found = run(case, op=op, **options)
    expected, expected_lse = case.expected(scale=case.q.shape[3] ** -0.5, **options)
    taken = decoding(case)
    limit = RELATIVE_QUANTISED if case.layout.is_quantised else RELATIVE[case.q.dtype]
    assert relative_error(found.out[taken], expected[taken]) <= limit
    assert (found.lse[taken] - expected_lse[taken]).abs().max() <= LSE
    assert bool(found.out[~taken].isnan().all())
    assert bool(found.lse[~taken].isnan().all())


@pytest.mark.parametrize("options", [{}, {"window": 7}, {"softcap": 2.0}])
def test_the_specification_agrees_with_dense_attention(options: dict[str, Any]) -> None:
    check(make_case(RAGGED, head_dim=32, block_size=8, group=3), op=reference.paged_decode, **options)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_every_head_dim_agrees_with_dense_attention(head_dim: int) -> None:
    for kv_dtype in (None, FP8):
        check(make_case([(1, 21), (1, 130)], head_dim=head_dim, kv_heads=1, kv_dtype=kv_dtype))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 16])
def test_every_group_agrees_with_dense_attention(group: int) -> None:
    check(make_case([(1, 70)], head_dim=32, group=group))


@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128, 256])
def test_every_block_size_agrees_with_dense_attention(block_size: int) -> None:
    lengths = [1, block_size - 1, block_size, block_size + 1]
    check(make_case([(1, n) for n in lengths], head_dim=32, kv_heads=1, block_size=block_size))


@pytest.mark.parametrize("kv_dtype", [None, FP8, INT8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ragged_rows_agree_and_others_are_left_alone(
    dtype: torch.dtype, kv_dtype: torch.dtype | None
) -> None:
    check(make_case(RAGGED, head_dim=32, block_size=16, dtype=dtype, kv_dtype=kv_dtype, group=3))


@pytest.mark.parametrize("kv_dtype", [None, FP8])
@pytest.mark.parametrize("block_size", [16, 64])
def test_a_window_and_a_cap_agree_with_dense_attention(block_size: int, kv_dtype: torch.dtype | None) -> None:
    for options in ({"window": 1}, {"window": 65, "softcap": 3.0}, {"window": 1000}):
        check(make_case(RAGGED, head_dim=32, block_size=block_size, kv_dtype=kv_dtype, kv_heads=1), **options)


def test_a_plan_without_the_window_gives_the_same() -> None:
    case = make_case([(1, 300), (1, 40)], head_dim=32)
    plan = AttentionPlan.allocate("cpu", 2, 8, 0)
    plan_attention(
        case.batch.query_start, case.batch.seq_lens, plan, num_kv_heads=2, tile_queries=1, num_sms=132
    )
    found = run(case, plan=plan, window=50)
    expected, expected_lse = case.expected(scale=32**-0.5, window=50)
    assert relative_error(found.out, expected) <= RELATIVE[torch.float32]
    assert (found.lse - expected_lse).abs().max() <= LSE


def test_a_row_that_sees_no_key_gives_zero() -> None:
    case = make_case([(1, 5), (1, 9)], head_dim=32)
    plan = AttentionPlan.allocate("cpu", 2, 8, 0)
    plan.items[:3] = int32([[0, 5, 5, -1], [1, 3, 3, 1], [1, 0, 0, 2]])
    plan.row_items.copy_(int32([0, 1, 3]))
    plan.counts[0] = 3
    found = run(case, plan=plan)
    assert bool((found.out == 0).all())
    assert bool((found.lse == -math.inf).all())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kv_dtype", [None, INT8])
def test_neither_order_nor_layout_of_blocks_changes_a_bit(seed: int, kv_dtype: torch.dtype | None) -> None:
    print(f"seed {seed}")
    options: dict[str, Any] = {"head_dim": 32, "block_size": 16, "kv_dtype": kv_dtype, "seed": seed}
    first = run(make_case([(1, 100), (1, 33)], order=seed, **options))
    permuted = run(make_case([(1, 100), (1, 33)], order=seed + 100, **options))
    layers = run(make_case([(1, 100), (1, 33)], order=seed, layer_major=True, **options))
    for other in (permuted, layers):
        assert bits(first.out) == bits(other.out)
        assert bits(first.lse) == bits(other.lse)


def alone(case: Case, row: int) -> Case:
    """One row of a batch as a batch of its own, over the same arena and table."""
    first, end = case.batch.query_start[row : row + 2].tolist()
    batch = dataclasses.replace(
        case.batch,
        query_start=int32([0, end - first]),
        seq_lens=case.batch.seq_lens[row : row + 1],
        slots=case.batch.slots[row : row + 1],
    )
    return dataclasses.replace(case, batch=batch, q=case.q[:, first:end].contiguous())


def test_a_row_gives_the_same_bits_alone_and_beside_others() -> None:
    case = make_case([(1, 257), (5, 20), (1, 640), (1, 3)], head_dim=32, dtype=torch.float16)
    mixed = run(case)
    for row, token in ((0, 0), (2, 6), (3, 7)):
        assert run(alone(case, row)).row(0) == mixed.row(token)


def test_pieces_of_another_size_give_nearly_the_same() -> None:
    case = make_case([(1, 640), (1, 129)], head_dim=32)
    split, coarse = run(case), run(case, num_sms=1)
    assert relative_error(split.out, coarse.out) <= 1e-3
    assert relative_error(split.out, coarse.out) > 0


@pytest.mark.slow  # 8 s
@pytest.mark.parametrize("kv_dtype", [None, FP8])
def test_long_rows_agree_with_dense_attention(kv_dtype: torch.dtype | None) -> None:
    lengths = [127, 128, 129, 255, 257, 1023, 1025, 4097]
    check(make_case([(1, n) for n in lengths], head_dim=64, kv_dtype=kv_dtype, kv_heads=1))


@pytest.mark.parametrize("kv_dtype", [None, FP8])
def test_table_entries_of_blocks_without_keys_are_not_followed(kv_dtype: torch.dtype | None) -> None:
    """They lead out of the arena, where a read ends the process."""
    case = make_case([(1, 20), (1, 50)], head_dim=32, block_size=16, kv_dtype=kv_dtype)
    table = torch.full_like(case.batch.block_table, 2**31 - 1)
    for slot, keys in zip(case.batch.slots.tolist(), case.batch.seq_lens.tolist(), strict=True):
        table[slot, : -(-keys // 16)] = case.batch.block_table[slot, : -(-keys // 16)]
    led_out = dataclasses.replace(case, batch=dataclasses.replace(case.batch, block_table=table))
    assert bits(run(led_out).out) == bits(run(case).out)


def test_strides_of_queries_are_arguments() -> None:
    case = make_case([(1, 20), (1, 40)], head_dim=32, group=3)
    tokens_first = case.q.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    assert tokens_first.stride() != case.q.stride()
    assert bits(run(dataclasses.replace(case, q=tokens_first)).out) == bits(run(case).out)


def test_programs_take_several_items_where_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case([(1, 300), (1, 70), (1, 130)], head_dim=32)
    flat = run(case)
    monkeypatch.setattr("airi.kernels.decode.PROGRAMS_PER_SM", 1)
    monkeypatch.setattr(
        "airi.kernels.decode.arch_of", lambda _: dataclasses.replace(ARCHS["sm_90"], num_sms=3)
    )
    assert bits(run(case).out) == bits(flat.out)


def test_no_rows_are_nothing_to_do() -> None:
    case = make_case([], head_dim=32)
    found = run(case)
    assert found.out.shape == (0, 4, 32)


def test_blocks_beyond_every_32_bit_offset_are_reached(tmp_path: Path) -> None:
    """Behind 2^31 units of 16 bytes, what the kernel counts in."""
    near = make_case([(1, 20)], head_dim=64, block_size=16, kv_heads=1)
    step = -(-near.layout.layer_bytes // GRANULE_BYTES)
    size = 44 << 30
    arena = sparse_arena(tmp_path / "arena", size)
    entries = [size // GRANULE_BYTES - step, (size * 3 // 4) // GRANULE_BYTES]
    for column, entry in enumerate(entries):
        source = int(near.batch.block_table[int(near.batch.slots[0]), column])
        near.layout.block(arena, entry, 0).copy_(near.layout.block(near.arena, source, near.layer_offset))
    table = near.batch.block_table.clone()
    table[int(near.batch.slots[0]), :2] = int32(entries)
    far = dataclasses.replace(
        near, arena=arena, layer_offset=0, batch=dataclasses.replace(near.batch, block_table=table)
    )
    assert bits(run(far).out) == bits(run(near).out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 1, 2, 32, dtype=torch.float16)}, r"q must be float32 \[2, any, any, 32\], got fl"),
        ({"q": torch.zeros(2, 1, 2, 64)[..., ::2]}, "q must be contiguous in its last dimension"),
        ({"q": torch.zeros(2, 1, 17, 32)}, "group must be 1 to 16 query heads per kv head, got 17"),
        ({"arena": torch.zeros(4096)}, r"arena must be uint8 \[any\], got float32 \[4096\]"),
        ({"arena": torch.zeros(4099, dtype=torch.uint8)[1:]}, "arena must be aligned to 16 bytes"),
        ({"block_table": torch.zeros(2, dtype=torch.int32)}, r"block_table must be int32 \[any, any\]"),
        ({"slots": torch.zeros(2, dtype=torch.int32)}, r"slots must be int32 \[1\], got int32 \[2\]"),
        ({"query_start": torch.zeros(1, dtype=torch.int32)}, r"query_start must be int32 \[2\]"),
        ({"seq_lens": torch.ones(1)}, r"seq_lens must be int32 \[any\], got float32 \[1\]"),
        ({"seq_lens": torch.ones(1, dtype=torch.int32, device="meta")}, "seq_lens must be on cpu, got meta"),
        ({"plan": AttentionPlan.allocate("cpu", 0, 4, 0)}, "seq_lens must be at most the plan's 0 rows, got 1"),
        ({"workspace": DecodeWorkspace.allocate("cpu", 3, 4, 32)}, "workspace must be room for the plan's 4 it"),
        ({"workspace": DecodeWorkspace.allocate("cpu", 4, 8, 32)}, r"workspace.acc must be float32 \[any, 4, 32"),
        ({"out": torch.zeros(1, 4, 64)}, r"out must be .* \[1, 4, 32\], got float32 \[1, 4, 64\]"),
        ({"lse": torch.zeros(1, 4, dtype=torch.float64)}, r"lse must be float32 \[1, 4\], got float64"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"layer_offset": 8}, "layer_offset must be a multiple of 16 bytes, got 8"),
        ({"window": -1}, "window must be 0 .none. or more, got -1"),
        ({"softcap": math.inf}, "softcap must be 0 .none. or more, and finite, got inf"),
        ({"block_size": 48}, "block_size must be one of .*, got 48"),
        ({"head_dim": 48}, "head_dim must be one of .*, got 48"),
        ({"dtype": torch.float64}, "dtype must be .*, got torch.float64"),
        ({"token_stride": 136}, "layout.token_stride must be a multiple of 16 bytes, got 136"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(change: dict[str, Any], message: str) -> None:
    of_layout = {"block_size": 16, "head_dim": 32, "dtype": torch.float32}
    layout = KvLayout.block_major(
        num_kv_heads=2, **{name: change.pop(name, value) for name, value in of_layout.items()}
    )
    if "token_stride" in change:
        layout = dataclasses.replace(layout, token_stride=change.pop("token_stride"))
    dim = layout.head_dim
    arguments: dict[str, Any] = {
        "q": torch.zeros(2, 1, 2, dim, dtype=layout.dtype),
        "arena": torch.zeros(8192, dtype=torch.uint8),
        "layout": layout,
        "block_table": torch.zeros((1, 2), dtype=torch.int32),
        "slots": torch.zeros(1, dtype=torch.int32),
        "query_start": int32([0, 1]),
        "seq_lens": int32([1]),
        "plan": AttentionPlan.allocate("cpu", 1, 4, 0),
        "workspace": DecodeWorkspace.allocate("cpu", 4, 4, dim),
        "out": torch.zeros(1, 4, dim),
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        paged_decode(**arguments | change)


@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS)
def test_tiles_fit_blocks_and_architectures(arch: Arch) -> None:
    for head_dim in HEAD_DIMS:
        for block_size in BLOCK_SIZES:
            for dtype in KV_DTYPES:
                tiles = decode_tiles(arch, head_dim, block_size, dtype, 4)
                assert block_size % tiles.tile == 0 or tiles.tile % block_size == 0
                padded = 1 << (head_dim - 1).bit_length()
                in_flight = (tiles.num_stages - 1) // 2
                held = in_flight * 2 * tiles.tile * padded * dtype.itemsize
                assert held <= arch.max_shared - 4096
