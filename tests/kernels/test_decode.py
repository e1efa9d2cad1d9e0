"""Split decoding against dense attention in float64, and what must not change a bit of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from airi.kernels import reference
from airi.kernels.attention_plan import AttentionPlan, DecodeWorkspace
from airi.kernels.decode import paged_decode
from airi.kernels.plan import plan_attention

from .paged import Case, make_case
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
    # Beside quantised keys, queries are rounded to float16.
    lse_limit = 10 * LSE if case.layout.is_quantised and case.q.dtype is torch.float32 else LSE
    assert (found.lse[taken] - expected_lse[taken]).abs().max() <= lse_limit
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
