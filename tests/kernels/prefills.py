"""One call of prefill on a case, and what is to hold of it whichever kernel runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from airi.kernels.arch import ARCHS, Arch
from airi.kernels.prefill import paged_prefill, prefill_tiles

from .paged import Case, int32, tiles_of
from .tolerances import LSE, RELATIVE, relative_error

SM_90 = ARCHS["sm_90"]


def run(
    case: Case,
    *,
    op: Callable[..., None] = paged_prefill,
    out: torch.Tensor | None = None,
    spare: int = 1,
    arch: Arch = SM_90,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and log-sums of tokens that lie in tiles, NaN elsewhere."""
    kv_heads, tokens, group, head_dim = case.q.shape
    layout = case.layout
    tiles = prefill_tiles(arch, head_dim, group, layout.dtype, layout.block_size)
    plan = tiles_of(case.batch.query_start, tiles.tile_queries, spare=spare)
    if out is None:
        out = torch.full((tokens, kv_heads * group, head_dim), math.nan, dtype=case.q.dtype)
    lse = torch.full((tokens, kv_heads * group), math.nan)
    batch = case.batch
    rows = batch.block_table, batch.slots, batch.query_start, batch.seq_lens
    op(
        case.q, case.arena, layout, *rows, options.pop("plan", plan), out,
        **{"scale": head_dim**-0.5, "layer_offset": case.layer_offset, "num_tiles": len(plan.tiles)}
        | {"variant": "pointer", "lse": lse} | options,
    )  # fmt: skip
    return out, lse


def in_tiles(case: Case) -> torch.Tensor:
    """The tokens of rows with more than one query."""
    lens = case.batch.query_start.diff()
    return torch.repeat_interleave(lens > 1, lens.long())


def check(
    case: Case,
    *,
    op: Callable[..., None] = paged_prefill,
    variant: str = "pointer",
    arch: Arch = SM_90,
    tolerance: float | None = None,
    **options: Any,
) -> None:
    out, lse = run(case, op=op, variant=variant, arch=arch, **options)
    expected, expected_lse = case.expected(scale=case.q.shape[3] ** -0.5, **options)
    taken = in_tiles(case)
    limit = RELATIVE[case.q.dtype] if tolerance is None else tolerance
    assert relative_error(out[taken], expected[taken]) <= limit
    assert (lse[taken] - expected_lse[taken]).abs().max() <= (LSE if tolerance is None else 1e-2)
    assert bool(out[~taken].isnan().all())
    assert bool(lse[~taken].isnan().all())


def chunk(case: Case, begin: int, end: int) -> Case:
    batch = dataclasses.replace(case.batch, query_start=int32([0, end - begin]), seq_lens=int32([end]))
    return dataclasses.replace(case, batch=batch, q=case.q[:, begin:end].contiguous())
