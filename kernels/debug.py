"""What launchers cannot see without waiting for the device: whether the values in a step's tensors make sense."""

from __future__ import annotations

import torch

from ._checks import check
from .layout import GRANULE_BYTES, KvLayout


def check_batch(
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    layout: KvLayout,
    arena: torch.Tensor,
    *,
    layer_offset: int = 0,
    window: int = 0,
) -> None:
    """Raises ValueError naming the row and the value that would make a kernel read or write where it must not.

    For tests and for debugging: it copies the tensors to the host. Rows without a query are not looked at, nor are
    table entries of blocks that no query of their row sees.
    """
    starts, lens, lines = query_start.tolist(), seq_lens.tolist(), slots.tolist()
    table = block_table.cpu()
    check("query_start", starts, f"{len(lens) + 1} values from 0", ok=len(starts) == len(lens) + 1)
    check("query_start[0]", starts[0], "0", ok=starts[0] == 0)
    head = (layout.num_kv_heads - 1) * layout.head_stride
    values = layout.kv_stride + (layout.block_size - 1) * layout.token_stride
    values += layout.head_dim * layout.dtype.itemsize
    scales = layout.scale_offset + 8 * layout.block_size if layout.is_quantised else 0
    last = (arena.shape[0] - layer_offset - head - max(values, scales)) // GRANULE_BYTES
    for row, (first, end, keys, line) in enumerate(zip(starts, starts[1:], lens, lines, strict=False)):
        queries = end - first
        check(f"queries of row {row}", queries, "0 or more", ok=queries >= 0)
        if not queries:
            continue
        check(f"slots[{row}]", line, f"0 to {table.shape[0] - 1}", ok=0 <= line < table.shape[0])
        most = table.shape[1] * layout.block_size
        check(f"seq_lens[{row}]", keys, f"{queries} (its queries) to {most}", ok=queries <= keys <= most)
        low = max(0, keys - queries - window + 1) if window else 0
        for column in range(low // layout.block_size, -(-keys // layout.block_size)):
            entry = int(table[line, column])
            name = f"block_table[{line}, {column}] of row {row}"
            check(name, entry, f"0 to {last}, in the arena", ok=0 <= entry <= last)
