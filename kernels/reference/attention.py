"""Attention over paged memory, row by row and head by head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._checks import check, check_tensor
from ..layout import KvLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedBatch:
    """The rows of one step: row r owns tokens [query_start[r], query_start[r + 1]) of the batch.

    query_start is [rows + 1], seq_lens (keys after this step) and slots are [rows], all int32; row r uses line
    slots[r] of block_table, int32 [slots, blocks].
    """

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    slots: torch.Tensor
    block_table: torch.Tensor

    def __post_init__(self) -> None:
        rows = self.seq_lens.shape[0]
        for name, shape in (("query_start", (rows + 1,)), ("seq_lens", (rows,)), ("slots", (rows,))):
            check_tensor(name, getattr(self, name), torch.int32, shape)
        check_tensor("block_table", self.block_table, torch.int32, (None, None), contiguous=False)
        lens = self.query_start.diff()
        if int(self.query_start[0]) != 0 or bool((lens < 0).any()):
            raise ValueError(f"query_start must ascend from 0, got {self.query_start.tolist()}")
        if bool((self.seq_lens < lens).any()):
            raise ValueError(
                f"seq_lens must be at least the rows' queries {lens.tolist()}, got {self.seq_lens.tolist()}"
            )
        if bool(((self.slots < 0) | (self.slots >= self.block_table.shape[0])).any()):
            raise ValueError(f"slots must lie in the table's {self.block_table.shape[0]} lines")

    @property
    def tokens(self) -> int:
        """Queries of all rows."""
        return int(self.query_start[-1])

    def positions(self, row: int) -> range:
        """The positions of the row's queries in its sequence."""
        length = int(self.seq_lens[row])
        return range(length - int(self.query_start[row + 1] - self.query_start[row]), length)


def paged_attention(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    *,
    scale: float,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    accumulate: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Attends decode rows and chunks of prompts together.

    q is [tokens, q_heads, head_dim]; the result has its shape and dtype, computed in `accumulate`. The arena
    is uint8. A query head h reads kv head h // (q_heads // kv_heads).
    """
    check_tensor("q", q, q.dtype, (batch.tokens, None, layout.head_dim), contiguous=False)
    check_tensor("arena", arena, torch.uint8, (None,))
    heads = q.shape[1]
    check("q heads", heads, f"a multiple of {layout.num_kv_heads}", ok=heads % layout.num_kv_heads == 0)
    check("window", window, "0 (none) or more", ok=window >= 0)
    check("softcap", softcap, "0 (none) or more", ok=softcap >= 0)
    group = heads // layout.num_kv_heads
    out = torch.empty_like(q)
    for row in range(batch.seq_lens.shape[0]):
        positions = batch.positions(row)
        if not positions:
            continue
        lowest = max(0, positions[0] - window + 1) if window else 0
        keys, values = gather_kv(arena, layout, batch, row, lowest, layer_offset=layer_offset)
        for i, position in enumerate(positions, int(batch.query_start[row])):
            begin = max(lowest, position - window + 1) if window else 0
            for head in range(heads):
                k = keys[head // group, begin - lowest : position + 1 - lowest].to(accumulate)
                v = values[head // group, begin - lowest : position + 1 - lowest].to(accumulate)
                scores = k @ q[i, head].to(accumulate) * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                out[i, head] = (torch.softmax(scores, 0) @ v).to(q.dtype)
    return out


def gather_kv(
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    row: int,
    begin: int = 0,
    *,
    layer_offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of keys and values [begin, seq_len) of a row, each [kv_heads, keys, head_dim].

    In the layout's dtype, or float32 where that is quantised.
    """
    end, size = int(batch.seq_lens[row]), layout.block_size
    entries = batch.block_table[int(batch.slots[row])].tolist()
    dtype = torch.float32 if layout.is_quantised else layout.dtype
    out = torch.empty(
        (2, layout.num_kv_heads, end - begin, layout.head_dim), dtype=dtype, device=arena.device
    )
    for start in range(begin - begin % size, end, size):
        first, last = max(begin, start), min(end, start + size)
        block = layout.block(arena, entries[start // size], layer_offset)
        if layout.is_quantised:
            block = block.float() * layout.scales(arena, entries[start // size], layer_offset)[..., None]
        out[:, :, first - begin : last - begin] = block[:, :, first - start : last - start].transpose(0, 1)
    return out[0], out[1]
