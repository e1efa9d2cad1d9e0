"""How a step's attention is cut into work, row by row; the buffers and the rule are in `attention_plan`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..attention_plan import CHUNK_LIMITS, NO_PARTIAL, NO_TILE, AttentionPlan, PlanMode, fast_chunk


def plan_attention(
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    plan: AttentionPlan,
    *,
    num_kv_heads: int,
    tile_queries: int,
    num_sms: int,
    window: int = 0,
    mode: PlanMode = "invariant",
) -> None:
    """Cuts the attention of rows into the plan's items (one query) and tiles of `tile_queries` queries (more)."""
    queries, lens = query_start.diff().tolist(), seq_lens.tolist()
    spans = [
        (max(0, n - window) if window else 0, n) if count == 1 else (0, 0)
        for count, n in zip(queries, lens, strict=True)
    ]
    if mode == "invariant":
        cuts = [list(_cut(low, end, _own_chunk(end - low, num_kv_heads, num_sms))) for low, end in spans]
    else:
        chunk = fast_chunk(sum(end - low for low, end in spans), num_kv_heads, num_sms)
        cuts = [list(_cut(low, end, chunk)) for low, end in spans]
        while sum(map(len, cuts)) > plan.items.shape[0] and chunk < max(end for _, end in spans):
            chunk *= 2
            cuts = [list(_cut(low, end, chunk)) for low, end in spans]
    tiles = [
        -(-count // tile_queries) if count > 1 and n > 0 else 0
        for count, n in zip(queries, lens, strict=True)
    ]
    _write(plan, cuts, tiles)


def _own_chunk(keys: int, num_kv_heads: int, num_sms: int) -> int:
    chunk, most = CHUNK_LIMITS["invariant"]
    while chunk < most and chunk * num_sms < keys * num_kv_heads:
        chunk *= 2
    return chunk


def _cut(low: int, end: int, chunk: int) -> Iterator[tuple[int, int]]:
    while low < end:
        stop = min(end, low - low % chunk + chunk)
        yield low, stop
        low = stop


def _write(plan: AttentionPlan, cuts: list[list[tuple[int, int]]], tiles: list[int]) -> None:
    items: list[tuple[int, int, int, int]] = []
    row_items = [0]
    wanted = 0
    for row, pieces in enumerate(cuts):
        wanted += len(pieces)
        if wanted <= plan.items.shape[0]:
            for low, end in pieces:
                items.append((row, low, end, len(items) if len(pieces) > 1 else NO_PARTIAL))
        row_items.append(len(items))
    lost = wanted - len(items)
    placed: list[tuple[int, int]] = []
    wanted = 0
    for row, count in enumerate(tiles):
        wanted += count
        if wanted <= plan.tiles.shape[0]:
            placed.extend((row, tile) for tile in reversed(range(count)))
    lost += wanted - len(placed)
    partials = sum(item[3] != NO_PARTIAL for item in items)
    plan.tiles.fill_(NO_TILE)
    for target, values in ((plan.items, items), (plan.tiles, placed)):
        if values:
            target[: len(values)] = torch.tensor(values, dtype=torch.int32)
    plan.row_items[: len(row_items)] = torch.tensor(row_items, dtype=torch.int32)
    plan.counts.copy_(torch.tensor((len(items), len(placed), lost, partials), dtype=torch.int32))
