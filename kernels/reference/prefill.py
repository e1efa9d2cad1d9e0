"""Attention of chunks of prompts, arguments as the launcher's."""

from __future__ import annotations

import torch

from .._prefill import HasTiles, Prefill
from ..layout import KvLayout
from .attention import PagedBatch, gather_kv


def paged_prefill(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    plan: HasTiles,
    out: torch.Tensor,
    *,
    scale: float,
    num_tiles: int,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    variant: str = "auto",
    lse: torch.Tensor | None = None,
) -> None:
    """Attends the rows that have a tile among the plan's first num_tiles, in float32; `variant` says nothing."""
    call = Prefill(
        q=q,
        arena=arena,
        layout=layout,
        block_table=block_table,
        slots=slots,
        query_start=query_start,
        seq_lens=seq_lens,
        tiles=plan.tiles,
        out=out,
        lse=lse,
        scale=scale,
        softcap=softcap,
        window=window,
        layer_offset=layer_offset,
        num_tiles=num_tiles,
    )
    for row in sorted(set(plan.tiles[:num_tiles, 0].tolist()) - {-1}):
        span = slice(int(query_start[row]), int(query_start[row + 1]))
        results, sums = _attend_row(call, row, q[:, span].float())
        out[span] = results.to(out.dtype)
        if lse is not None:
            lse[span] = sums


def _attend_row(call: Prefill, row: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [queries, q_heads, head_dim] and the softmax's log-sums [queries, q_heads] of one row."""
    alone = PagedBatch(
        query_start=torch.tensor([0, q.shape[1]], dtype=torch.int32),
        seq_lens=call.seq_lens[row : row + 1].cpu(),
        slots=call.slots[row : row + 1].cpu(),
        block_table=call.block_table,
    )
    positions = alone.positions(0)
    begin = max(0, positions[0] - call.window + 1) if call.window else 0
    keys, values = gather_kv(call.arena, call.layout, alone, 0, begin, layer_offset=call.layer_offset)
    position = torch.tensor(positions, device=q.device)[:, None]
    key = torch.arange(begin, positions.stop, device=q.device)[None]
    seen = key <= position
    if call.window:
        seen &= key > position - call.window
    scores = torch.einsum("htgd,hkd->thgk", q, keys.float()) * call.scale
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    sums = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - sums[..., None]).where(seen[:, None, None], 0.0)
    return torch.einsum("thgk,hkd->thgd", weights, values.float()).flatten(1, 2), sums.flatten(1, 2)
