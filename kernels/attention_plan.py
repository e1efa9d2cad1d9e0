"""How a step's attention is cut into work: the buffers, the rule, and the rule in numpy for the host.

A decode row (one query) sees keys [low, n), low = max(0, n - window); they are cut at the multiples of its chunk:

    invariant   chunk = clamp(pow2ceil((n - low) kv_heads / num_sms), 128, 1024)       of the row alone
    fast        chunk = clamp(pow2ceil(sum(n - low) kv_heads / (4 num_sms)), 256, 8192), doubled until all items fit

so in the invariant mode no row's result depends on what runs beside it. Each piece is an item. A row with more
queries is cut into tiles of `tile_queries` of them, the last first: they see the most keys. Rows without a query or a
key have nothing. Rows come in order, each with all its items and tiles or, once a row finds no room, none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ._checks import check

PlanMode = Literal["invariant", "fast"]
CHUNK_LIMITS: dict[PlanMode, tuple[int, int]] = {"invariant": (128, 1024), "fast": (256, 8192)}
MAX_ROWS = 4096
"""Of a plan: what one program looks through while a step waits for it."""
FAST_ITEMS_PER_SM = 4
"""What the fast mode aims at: 4 programs of a multiprocessor hold some 128 KB of loads in flight."""
NO_PARTIAL = -1
"""In an item: its row has no other, so its result goes straight to the output."""
NO_TILE = -1
"""In a tile's row: there is none."""

_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """Fixed device buffers, int32, that say what each program of attention does in a step."""

    items: torch.Tensor
    """[max_items, 4]: row, first key, end of keys, and where its partial result goes (NO_PARTIAL: to the output)."""
    row_items: torch.Tensor
    """[max_rows + 1]: row r has items [row_items[r], row_items[r + 1])."""
    tiles: torch.Tensor
    """[max_tiles, 2]: row (NO_TILE: none) and which of its tiles of queries."""
    counts: torch.Tensor
    """[4]: items, tiles, how many of both found no room (0 in a valid plan), partial results."""

    @classmethod
    def allocate(
        cls, device: torch.device | str, max_rows: int, max_items: int, max_tiles: int
    ) -> AttentionPlan:
        """An empty plan with room for this many."""
        for name, value in (("max_rows", max_rows), ("max_items", max_items), ("max_tiles", max_tiles)):
            check(name, value, "0 or more", ok=value >= 0)
        return cls(
            items=torch.zeros((max_items, 4), dtype=torch.int32, device=device),
            row_items=torch.zeros(max_rows + 1, dtype=torch.int32, device=device),
            tiles=torch.full((max_tiles, 2), NO_TILE, dtype=torch.int32, device=device),
            counts=torch.zeros(4, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkspace:
    """Partial results of items, float32, between splitting and combining. *Invariant*: one step at a time uses it."""

    acc: torch.Tensor
    """[max_items, q_heads, head_dim]: softmax-weighted values of the item's keys, normalised."""
    lse: torch.Tensor
    """[max_items, q_heads]: natural logarithm of the item's sum of exp(score)."""

    @classmethod
    def allocate(
        cls, device: torch.device | str, max_items: int, num_heads: int, head_dim: int
    ) -> DecodeWorkspace:
        """Not initialised: a plan's items are written before they are read."""
        return cls(
            acc=torch.empty((max_items, num_heads, head_dim), dtype=torch.float32, device=device),
            lse=torch.empty((max_items, num_heads), dtype=torch.float32, device=device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """What plan_attention writes, for rows whose lengths the host knows; see AttentionPlan."""

    items: npt.NDArray[np.int32]
    row_items: npt.NDArray[np.int32]
    tiles: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]


def items_per_row(seq_lens: npt.ArrayLike, *, num_kv_heads: int, num_sms: int, window: int = 0) -> _Counts:
    """How many items each row of one query and `seq_lens` keys has in the invariant mode, int64 [R]."""
    lows, ends = _visible(np.asarray(seq_lens, np.int64), window)
    return _pieces(lows, ends, _chunks(ends - lows, num_kv_heads, num_sms))


def count_items(seq_lens: npt.ArrayLike, *, num_kv_heads: int, num_sms: int, window: int = 0) -> int:
    """How many items decode rows with these many keys need in the invariant mode."""
    return int(items_per_row(seq_lens, num_kv_heads=num_kv_heads, window=window, num_sms=num_sms).sum())


def plan_on_host(
    query_start: npt.ArrayLike,
    seq_lens: npt.ArrayLike,
    *,
    max_items: int,
    max_tiles: int,
    num_kv_heads: int,
    tile_queries: int,
    num_sms: int,
    window: int = 0,
    mode: PlanMode = "invariant",
) -> HostPlan:
    """The plan that plan_attention makes of the same arguments; `items` without its unused end."""
    queries = np.diff(np.asarray(query_start, np.int64))
    lows, ends = _visible(np.where(queries == 1, np.asarray(seq_lens, np.int64), 0), window)
    if mode == "invariant":
        chunks = _chunks(ends - lows, num_kv_heads, num_sms)
    else:
        chunk = fast_chunk(int((ends - lows).sum()), num_kv_heads, num_sms)
        # As long as halving its pieces can still lower a row's number of them.
        while _pieces(lows, ends, chunk).sum() > max_items and chunk < ends.max(initial=0):
            chunk *= 2
        chunks = np.full(queries.shape, chunk)
    pieces, lost_items = _that_fit(_pieces(lows, ends, chunks), max_items)
    has_tiles = (queries > 1) & (np.asarray(seq_lens) > 0)
    tiles, lost_tiles = _that_fit(np.where(has_tiles, -(-queries // tile_queries), 0), max_tiles)

    item_rows, index = _expand(pieces)
    cuts = (lows // chunks)[item_rows] + index
    begins = np.maximum(cuts * chunks[item_rows], lows[item_rows])
    item_ends = np.minimum((cuts + 1) * chunks[item_rows], ends[item_rows])
    split = pieces[item_rows] > 1
    partials = np.where(split, np.arange(item_rows.size), NO_PARTIAL)
    tile_rows, tile_index = _expand(tiles)
    out_tiles = np.full((max_tiles, 2), NO_TILE, np.int32)
    out_tiles[: tile_rows.size] = np.stack((tile_rows, tiles[tile_rows] - 1 - tile_index), 1)
    counts = (pieces.sum(), tiles.sum(), lost_items + lost_tiles, split.sum())
    return HostPlan(
        items=np.stack((item_rows, begins, item_ends, partials), 1).astype(np.int32),
        row_items=np.concatenate(([0], np.cumsum(pieces))).astype(np.int32),
        tiles=out_tiles,
        counts=np.array(counts, np.int32),
    )


def fast_chunk(keys: int, num_kv_heads: int, num_sms: int) -> int:
    """The fast mode's chunk for rows that see `keys` keys in all, before items that find no room double it."""
    chunk, most = CHUNK_LIMITS["fast"]
    while chunk < most and keys * num_kv_heads > chunk * FAST_ITEMS_PER_SM * num_sms:
        chunk *= 2
    return chunk


def _visible(seq_lens: _Counts, window: int) -> tuple[_Counts, _Counts]:
    """First and end of the keys that the last position of each sequence sees."""
    return np.maximum(seq_lens - window, 0) if window else np.zeros_like(seq_lens), seq_lens


def _chunks(keys: _Counts, num_kv_heads: int, num_sms: int) -> _Counts:
    least, most = CHUNK_LIMITS["invariant"]
    chunks = np.full(keys.shape, least, np.int64)
    for size in (least << i for i in range((most // least).bit_length() - 1)):
        chunks = np.where(keys * num_kv_heads > size * num_sms, 2 * size, chunks)
    return chunks


def _pieces(lows: _Counts, ends: _Counts, chunk: _Counts | int) -> _Counts:
    """How many multiples of chunk begin a piece of [low, end), low counted as one; 0 where that is empty."""
    return np.where(ends > lows, -(-ends // chunk) - lows // chunk, 0)


def _that_fit(wanted: _Counts, room: int) -> tuple[_Counts, int]:
    """`wanted` with 0 from the first row on with which the sum passes `room`, and how much that leaves out."""
    fitting = np.where(np.cumsum(wanted) <= room, wanted, 0)
    return fitting, int(wanted.sum() - fitting.sum())


def _expand(counts: _Counts) -> tuple[_Counts, _Counts]:
    """Row r counts[r] times, and beside it 0 to counts[r] - 1."""
    rows = np.repeat(np.arange(counts.size), counts)
    return rows, np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
