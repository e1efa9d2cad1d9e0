"""Small operations on a step's tokens and on the block table."""

from __future__ import annotations

import torch


def map_tokens(
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    out_entries: torch.Tensor,
    *,
    block_size: int,
) -> None:
    """Writes the block-table entry of each token's block, int32 [T]; -1 for tokens beyond query_start[R]."""
    out_entries.fill_(-1)
    for row in range(seq_lens.shape[0]):
        first, end = int(query_start[row]), int(query_start[row + 1])
        if first < end:
            positions = torch.arange(first - end, 0, device=seq_lens.device) + seq_lens[row]
            line = block_table[int(slots[row])]
            out_entries[first:end] = line[positions.div(block_size, rounding_mode="floor")]


def apply_table_deltas(block_table: torch.Tensor, deltas: torch.Tensor, count: torch.Tensor) -> None:
    """Makes the first count[0] changes (slot, column, entry) to the block table, in their order."""
    lines, columns = block_table.shape
    for slot, column, entry in deltas[: max(0, int(count[0]))].tolist():
        if 0 <= slot < lines and 0 <= column < columns:
            block_table[slot, column] = entry


def fill_tokens(
    tokens: torch.Tensor,
    last_tokens: torch.Tensor,
    query_start: torch.Tensor,
    slots: torch.Tensor,
    row_flags: torch.Tensor,
    pending_flag: int,
) -> None:
    """tokens[query_start[r]] = last_tokens[slots[r]] for rows with a query whose flags have pending_flag."""
    for row in range(row_flags.shape[0]):
        if query_start[row] < query_start[row + 1] and int(row_flags[row]) & pending_flag:
            tokens[query_start[row]] = last_tokens[slots[row]]
