"""Attention of rows with one query, row by row, and the merging of partial results."""

from __future__ import annotations

import math

import torch

from ..attention_plan import AttentionPlan, DecodeWorkspace
from ..layout import KvLayout
from .attention import PagedBatch, gather_kv


def paged_decode(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    out: torch.Tensor,
    *,
    scale: float,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    lse: torch.Tensor | None = None,
    accumulate: torch.dtype = torch.float32,
) -> None:
    """Attends the rows that have items in the plan; all others' part of out and lse is left as it is.

    q is [kv_heads, tokens, group, head_dim], out [tokens, kv_heads * group, head_dim]. The workspace is not used: a
    row's keys are not split here.
    """
    bounds = plan.row_items.tolist()
    for row in range(seq_lens.shape[0]):
        if bounds[row] == bounds[row + 1]:
            continue
        token, end = int(query_start[row]), int(seq_lens[row])
        alone = PagedBatch(
            query_start=torch.tensor([0, 1], dtype=torch.int32),
            seq_lens=seq_lens[row : row + 1],
            slots=slots[row : row + 1],
            block_table=block_table,
        )
        low = max(0, end - window) if window else 0
        keys, values = gather_kv(arena, layout, alone, 0, low, layer_offset=layer_offset)
        scores = torch.einsum("hgd,hkd->hgk", q[:, token].to(accumulate), keys.to(accumulate)) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.softmax(scores, -1)
        out[token] = torch.einsum("hgk,hkd->hgd", weights, values.to(accumulate)).flatten(0, 1).to(out.dtype)
        if lse is not None:
            lse[token] = torch.logsumexp(scores, -1).flatten().to(lse.dtype)


def combine_partials(
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    query_start: torch.Tensor,
    out: torch.Tensor,
    *,
    lse: torch.Tensor | None = None,
) -> None:
    """Merges the parts of each row with two items or more; parts whose lse is -inf weigh nothing."""
    bounds = plan.row_items.tolist()
    for row in range(query_start.shape[0] - 1):
        parts = slice(bounds[row], bounds[row + 1])
        if parts.stop - parts.start < 2:
            continue
        sums = workspace.lse[parts].double()  # [parts, heads]
        total = torch.logsumexp(sums, 0)
        weights = torch.where(total == -math.inf, 0.0, torch.exp(sums - total))
        token = int(query_start[row])
        out[token] = (weights[..., None] * workspace.acc[parts]).sum(0).to(out.dtype)
        if lse is not None:
            lse[token] = total.to(lse.dtype)
