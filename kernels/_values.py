"""Values that launchers read on a device, checked where that waits for nothing: on a CPU.

There Triton's interpreter and the specification run, and a block id out of range is a segmentation fault or someone
else's keys. On a GPU nobody looks: the engine makes these tensors, and asking would stop the step. What no kernel
reads may hold anything: rows without a query or a key, negative slots of such rows, entries of blocks behind the
last key or before a window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ._checks import check
from .attention_plan import NO_TILE, AttentionPlan
from .layout import GRANULE_BYTES, KvLayout

_Ints = npt.NDArray[np.integer]


def is_seen(device: torch.device) -> bool:
    """Whether values of a device's tensors are there to be looked at."""
    return bool(device.type == "cpu")


def check_range(name: str, values: _Ints, low: int, high: int, *, at: _Ints | None = None) -> None:
    """Raises ValueError naming the first of the values outside of [low, high]; `at` says where each is from."""
    wrong = (values < low) | (values > high)
    if wrong.any():
        i = int(wrong.argmax())
        place = i if at is None else at[i]
        where = ", ".join(str(index) for index in np.atleast_1d(place).tolist())
        check(f"{name}[{where}]", values[i], f"{low} to {high}", ok=False)


def check_lines(
    rows: _Ints, seq_lens: torch.Tensor, slots: torch.Tensor, block_table: torch.Tensor, block_size: int
) -> _Ints:
    """Raises ValueError unless the rows' sequences fit their lines of the block table; returns the rows with keys."""
    lines, columns = block_table.shape
    lens = seq_lens.numpy()[rows]
    check_range("seq_lens", lens, 0, columns * block_size, at=rows)
    rows = rows[lens > 0]
    check_range("slots", slots.numpy()[rows], 0, lines - 1, at=rows)
    return rows


def check_queries(rows: _Ints, query_start: torch.Tensor, tokens: int) -> None:
    """Raises ValueError unless each row's queries are some of the step's tokens."""
    starts = query_start.numpy()
    check_range("query_start", starts[rows], 0, tokens, at=rows)
    for row in rows[starts[rows + 1] < starts[rows]][:1]:
        check(f"query_start[{row + 1}]", starts[row + 1], f"{starts[row]} or more", ok=False)
    check_range("query_start", starts[rows + 1], 0, tokens, at=rows + 1)


def check_blocks(
    rows: _Ints,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    layout: KvLayout,
    arena: torch.Tensor,
    layer_offset: int,
    lowest: _Ints | None = None,
) -> None:
    """Raises ValueError unless the blocks of the rows' keys lie in the arena, those before lowest [R] left out."""
    size = layout.block_size
    rows = check_lines(rows, seq_lens, slots, block_table, size)
    first = np.zeros_like(rows) if lowest is None else lowest[rows] // size
    counts = -(-seq_lens.numpy()[rows] // size) - first
    skipped = np.repeat(np.cumsum(counts) - counts - first, counts)
    places = np.stack((np.repeat(slots.numpy()[rows], counts), np.arange(len(skipped)) - skipped), 1)
    entries = block_table.numpy()[places[:, 0], places[:, 1]]
    check_range("block_table", entries, 0, _last_entry(layout, arena, layer_offset), at=places)


def check_attended(
    rows: _Ints,
    query_start: torch.Tensor,
    tokens: int,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    layout: KvLayout,
    arena: torch.Tensor,
    layer_offset: int,
    window: int,
    tile: int = 1,
) -> None:
    """Raises ValueError unless what these rows' queries see is there; keys are read from multiples of `tile` on."""
    check_queries(rows, query_start, tokens)
    lowest = None
    if window:
        lowest = np.maximum(seq_lens.numpy() - np.diff(query_start.numpy()) - window + 1, 0) // tile * tile
    check_blocks(rows, seq_lens, slots, block_table, layout, arena, layer_offset, lowest)


def planned_rows(plan: AttentionPlan, seq_lens: torch.Tensor) -> _Ints:
    """The rows of the plan's items; raises ValueError unless these are of rows of such lengths."""
    count = int(plan.counts[0])
    check(
        "plan.counts[0]", count, f"0 to the plan's {len(plan.items)} items", ok=0 <= count <= len(plan.items)
    )
    items = plan.items[:count].numpy()
    check_range("plan.items' rows", items[:, 0], 0, len(seq_lens) - 1)
    ends, lens = items[:, 2], seq_lens.numpy()[items[:, 0]]
    for i in np.flatnonzero(ends > lens)[:1]:
        check(f"plan.items[{i}, 2]", ends[i], f"at most its row's {lens[i]} keys", ok=False)
    return np.unique(items[:, 0])


def tiled_rows(tiles: torch.Tensor, seq_lens: torch.Tensor) -> _Ints:
    """The rows of a plan's tiles; raises ValueError unless there are such rows."""
    rows = tiles[:, 0].numpy()
    check_range("plan.tiles' rows", rows, NO_TILE, len(seq_lens) - 1)
    return np.unique(rows[rows >= 0])


def check_places(
    entries: torch.Tensor,
    positions: torch.Tensor,
    most: int,
    layout: KvLayout,
    arena: torch.Tensor,
    layer_offset: int,
) -> None:
    """Raises ValueError unless each token that has an entry has a position below `most`, and its block is there."""
    live = np.flatnonzero(entries.numpy() >= 0)
    check_range("positions", positions.numpy()[live], 0, most - 1, at=live)
    check_range("entries", entries.numpy()[live], 0, _last_entry(layout, arena, layer_offset), at=live)


def _last_entry(layout: KvLayout, arena: torch.Tensor, layer_offset: int) -> int:
    """The last entry whose block lies in the arena, with this layer of it."""
    values = layout.kv_stride + (layout.block_size - 1) * layout.token_stride
    values += layout.head_dim * layout.dtype.itemsize
    scales = layout.scale_offset + 8 * layout.block_size if layout.is_quantised else 0
    size = layer_offset + (layout.num_kv_heads - 1) * layout.head_stride + max(values, scales)
    return int((arena.numel() - size) // GRANULE_BYTES)
