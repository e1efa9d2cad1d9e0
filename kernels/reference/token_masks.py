"""Tokens that a form of text does not allow."""

from __future__ import annotations

import torch


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
    """Adds minus infinity to logits[rows[i], t] where bit t % 32 of masks[i, t // 32] is 0; row -1: none."""
    tokens = torch.arange(logits.shape[1], device=logits.device)
    for row, words in zip(rows.tolist(), masks, strict=True):
        if row >= 0:
            banned = (words[tokens // 32] >> (tokens % 32)) & 1 == 0
            logits[row, banned] += -torch.inf
