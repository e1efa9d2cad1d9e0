"""The routing of tokens to experts, and the products with their weights."""

from __future__ import annotations

import torch

from ..expert_plan import ExpertPlan


def expert_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    order: torch.Tensor,
    tiles: torch.Tensor,
    out: torch.Tensor,
    *,
    tile_rows: int,
    row_weights: torch.Tensor | None = None,
) -> None:
    """out[a] = x[a // r] @ weight[e].T, times scales[e] and row_weights[a], for each tile's expert and assignments.

    r is how often out has x's rows. Rows of out in no tile are left as they are.
    """
    repeats = len(out) // max(1, len(x))
    for expert, first, count in tiles.tolist():
        if count > tile_rows:
            raise ValueError(f"tiles must have at most {tile_rows} places, got {count}")
        if not count:
            continue
        rows = order[first : first + count].long()
        product = x[rows // repeats].float() @ weight[expert].float().T
        if scales is not None:
            product *= scales[expert]
        if row_weights is not None:
            product *= row_weights[rows, None]
        out[rows] = product.to(out.dtype)


def route_experts(
    scores: torch.Tensor,
    entries: torch.Tensor,
    plan: ExpertPlan,
    *,
    top_k: int,
    normalize: bool,
    tile_rows: int,
) -> None:
    """Chooses the top_k most probable experts of each token and cuts their work into tiles, expert after expert."""
    weights, chosen = scores.float().softmax(-1).topk(top_k, dim=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    plan.weights.copy_(weights.flatten())
    plan.experts.copy_(torch.where(entries[:, None] >= 0, chosen, -1).flatten())
    tiles = []
    place = 0
    for expert in range(scores.shape[1]):
        own = torch.nonzero(plan.experts == expert).flatten()
        plan.order[place : place + len(own)] = own.int()
        firsts = range(0, len(own), tile_rows)
        tiles += [(expert, place + first, min(tile_rows, len(own) - first)) for first in firsts]
        place += len(own)
    plan.tiles.zero_()
    if tiles:
        plan.tiles[: len(tiles)] = torch.tensor(tiles, dtype=torch.int32)
