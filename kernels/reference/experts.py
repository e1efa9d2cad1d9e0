"""Products of rows with the weights of the experts they were routed to."""

from __future__ import annotations

import torch


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
