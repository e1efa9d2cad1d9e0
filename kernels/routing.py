"""The choice of experts for each token, and the cut of their work into tiles: three launches, no host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._checks import FLOATS, check, check_tensor
from ._launch import launch_guard
from .expert_plan import TILE_ROWS, ExpertPlan, max_tiles
from .limits import MAX_EXPERTS

_TILE_ELEMENTS = 8192
"""Tiles times experts that are looked at at once: 16,384 spill registers on gfx942."""
_ORDER_BLOCK = 256


@triton.jit
def _choose_kernel(
    scores_ptr,
    entries_ptr,
    experts_ptr,
    weights_ptr,
    counts_ptr,
    stride_scores: tl.int64,
    E: tl.constexpr,
    EP: tl.constexpr,
    TOP: tl.constexpr,
    TOP_P: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """One token: the TOP greatest of softmax(scores), the lowest expert among equals. Grid: (tokens)."""
    i_token = tl.program_id(0)
    is_live = tl.load(entries_ptr + i_token) >= 0
    o_e = tl.arange(0, EP)
    m_e = o_e < E
    at = scores_ptr + i_token.to(tl.int64) * stride_scores + o_e
    b_score = tl.load(at, mask=m_e, other=float("-inf")).to(tl.float32)  # [EP]
    b_share = tl.exp(b_score - tl.max(b_score, 0))
    sum_share = tl.sum(b_share, 0)
    b_share = tl.where(m_e, b_share / sum_share, -1.0)
    o_choice = tl.arange(0, TOP_P)
    m_choice = o_choice < TOP
    b_expert = tl.zeros([TOP_P], tl.int32)
    b_weight = tl.zeros([TOP_P], tl.float32)
    for choice in range(TOP):
        # Shares that are NaN may choose any, also one that there is not.
        best = tl.minimum(tl.argmax(b_share, 0), E - 1)
        b_expert = tl.where(o_choice == choice, best, b_expert)
        b_weight = tl.where(o_choice == choice, tl.max(b_share, 0), b_weight)
        b_share = tl.where(o_e == best, -2.0, b_share)
    if NORMALIZE:
        b_weight /= tl.sum(b_weight, 0)
    b_weight = tl.where(sum_share == sum_share, b_weight, float("nan"))  # maxima leave NaN out
    place = i_token * TOP
    tl.store(weights_ptr + place + o_choice, b_weight, mask=m_choice)
    tl.store(experts_ptr + place + o_choice, tl.where(is_live, b_expert, -1), mask=m_choice)
    tl.atomic_add(counts_ptr + b_expert, 1, mask=m_choice & is_live)


@triton.jit(do_not_specialize=["num_tiles"])
def _tiles_kernel(
    counts_ptr,
    cursors_ptr,
    tiles_ptr,
    num_tiles,
    E: tl.constexpr,
    EP: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    """All tiles, expert after expert; leaves counts zero. Grid: one program."""
    o_e = tl.arange(0, EP)
    m_e = o_e < E
    b_count = tl.load(counts_ptr + o_e, mask=m_e, other=0)  # [EP]
    b_first = tl.cumsum(b_count, 0) - b_count
    tl.store(cursors_ptr + o_e, b_first, mask=m_e)
    tl.store(counts_ptr + o_e, tl.zeros([EP], tl.int32), mask=m_e)
    b_tiles = (b_count + ROWS - 1) // ROWS
    b_end = tl.cumsum(b_tiles, 0)
    for start in range(0, num_tiles, STEP):
        o_t = start + tl.arange(0, STEP)  # [STEP]
        m_own = (b_end[None, :] > o_t[:, None]) & ((b_end - b_tiles)[None, :] <= o_t[:, None])  # [STEP, EP]
        b_expert = tl.sum(tl.where(m_own, o_e[None, :], 0), 1)
        b_place = tl.sum(tl.where(m_own, (o_t[:, None] - (b_end - b_tiles)[None, :]) * ROWS, 0), 1)
        b_begin = tl.sum(tl.where(m_own, b_first[None, :], 0), 1) + b_place
        b_number = tl.minimum(tl.sum(tl.where(m_own, b_count[None, :], 0), 1) - b_place, ROWS)
        m_t = o_t < num_tiles
        tl.store(tiles_ptr + 3 * o_t, b_expert, mask=m_t)
        tl.store(tiles_ptr + 3 * o_t + 1, b_begin, mask=m_t)
        tl.store(tiles_ptr + 3 * o_t + 2, b_number, mask=m_t)


@triton.jit(do_not_specialize=["assignments"])
def _order_kernel(experts_ptr, cursors_ptr, order_ptr, assignments, BLOCK: tl.constexpr):
    """Each assignment takes its expert's next place. Grid: (assignments / BLOCK)."""
    o_a = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_expert = tl.load(experts_ptr + o_a, mask=o_a < assignments, other=-1)  # [BLOCK]
    m_a = b_expert >= 0
    b_place = tl.atomic_add(cursors_ptr + b_expert, 1, mask=m_a)
    tl.store(order_ptr + b_place, o_a, mask=m_a)


def route_experts(
    scores: torch.Tensor,
    entries: torch.Tensor,
    plan: ExpertPlan,
    *,
    top_k: int,
    normalize: bool,
    tile_rows: int,
) -> None:
    """Chooses the top_k most probable experts of each token and cuts their work into tiles.

        p = softmax(scores[t]);  weights = the top_k greatest of p, divided by their sum if `normalize`

    scores [T, E] in bf16, fp16 or fp32, its rows may lie apart; entries int32 [T], -1 for tokens that go to no expert.
    The plan has room for T * top_k assignments and as many tiles as these may make, exactly. Which place an
    assignment takes among its expert's is left to chance, and changes no result. Raises ValueError for tensors that
    do not fit.
    """
    _check(scores, entries, plan, top_k, tile_rows)
    tokens, experts = scores.shape
    assignments = tokens * top_k
    if not tokens:
        return
    width = triton.next_power_of_2(experts)
    with launch_guard():
        _choose_kernel[(tokens,)](
            scores,
            entries,
            plan.experts,
            plan.weights,
            plan.counts,
            scores.stride(0),
            E=experts,
            EP=width,
            TOP=top_k,
            TOP_P=triton.next_power_of_2(top_k),
            NORMALIZE=normalize,
            num_warps=1 if experts <= 256 else 4,
        )
        _tiles_kernel[(1,)](
            plan.counts,
            plan.cursors,
            plan.tiles,
            len(plan.tiles),
            E=experts,
            EP=width,
            ROWS=tile_rows,
            STEP=min(64, _TILE_ELEMENTS // width),
            num_warps=8,
        )
        _order_kernel[(triton.cdiv(assignments, _ORDER_BLOCK),)](
            plan.experts,
            plan.cursors,
            plan.order,
            assignments,
            BLOCK=_ORDER_BLOCK,
            num_warps=4,
        )


def _check(scores: torch.Tensor, entries: torch.Tensor, plan: ExpertPlan, top_k: int, tile_rows: int) -> None:
    check_tensor("scores", scores, FLOATS, (None, None), contiguous=False)
    tokens, experts = scores.shape
    device, assignments = scores.device, tokens * top_k
    check("experts of scores", experts, f"1 to {MAX_EXPERTS}", ok=1 <= experts <= MAX_EXPERTS)
    check("top_k", top_k, f"1 to {experts} experts", ok=1 <= top_k <= experts)
    check("tile_rows", tile_rows, f"one of {TILE_ROWS}", ok=tile_rows in TILE_ROWS)
    check_tensor("entries", entries, torch.int32, (tokens,), device)
    for name, dtype, shape in (
        ("experts", torch.int32, (assignments,)),
        ("weights", torch.float32, (assignments,)),
        ("order", torch.int32, (assignments,)),
        ("tiles", torch.int32, (max_tiles(assignments, experts, tile_rows), 3)),
        ("counts", torch.int32, (experts,)),
        ("cursors", torch.int32, (experts,)),
    ):
        check_tensor(f"plan.{name}", getattr(plan, name), dtype, shape, device)
