"""Arenas full of random keys and values, and batches whose blocks lie all over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from airi.kernels.layout import GRANULE_BYTES, QUANTISED_MAX, KvLayout

Order = Literal["block-major", "layer-major"]

_TEMPLATE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """One layer's attention."""

    kv_heads: int = 8
    group: int = 4
    head_dim: int = 128

    @property
    def q_heads(self) -> int:
        return self.kv_heads * self.group

    def __str__(self) -> str:
        return f"D{self.head_dim} Hkv{self.kv_heads} G{self.group}"


class Pool:
    """`layers` layers of `blocks` blocks in an arena, with room for either order of the two."""

    def __init__(
        self,
        arena: torch.Tensor,
        heads: Heads,
        *,
        dtype: torch.dtype,
        block_size: int,
        layers: int,
        order: Order = "block-major",
        blocks: int | None = None,
        base: int = 0,
    ) -> None:
        """Takes all of the arena from byte `base` on, or room for `blocks` of it."""
        self.arena, self.heads, self.layers, self.order = arena, heads, layers, order
        self.layout = KvLayout.block_major(
            block_size=block_size, num_kv_heads=heads.kv_heads, head_dim=heads.head_dim, dtype=dtype
        )
        self.unit = self.unit_bytes(heads, dtype, block_size)
        self.base = -(-base // GRANULE_BYTES) * GRANULE_BYTES
        room = (arena.numel() - self.base) // (self.unit * layers)
        self.blocks = room if blocks is None else blocks
        if not 1 <= self.blocks <= room:
            raise ValueError(f"blocks is {self.blocks}, the arena has room for {room}")

    @staticmethod
    def unit_bytes(heads: Heads, dtype: torch.dtype, block_size: int) -> int:
        """Of a block's layer, which starts at a granule, so that both orders hold the same units."""
        layout = KvLayout.block_major(
            block_size=block_size, num_kv_heads=heads.kv_heads, head_dim=heads.head_dim, dtype=dtype
        )
        return int(-(-layout.layer_bytes // GRANULE_BYTES) * GRANULE_BYTES)

    @property
    def nbytes(self) -> int:
        """Of all blocks."""
        return int(self.blocks * self.layers * self.unit)

    @property
    def scale_bytes(self) -> int:
        """Of one stored row."""
        return 4 if self.layout.is_quantised else 0

    def entries(self, blocks: torch.Tensor) -> torch.Tensor:
        """Block-table entries, int32, of block numbers."""
        step = self.unit * self.layers if self.order == "block-major" else self.unit
        return ((blocks.long() * step + self.base) // GRANULE_BYTES).int()

    def layer_offset(self, layer: int) -> int:
        """Bytes from where a block starts to its keys and values of a layer."""
        return int(layer * self.unit * (1 if self.order == "block-major" else self.blocks))

    def with_order(self, order: Order) -> Pool:
        """The same arena read in the other order."""
        return Pool(
            self.arena,
            self.heads,
            dtype=self.layout.dtype,
            block_size=self.layout.block_size,
            layers=self.layers,
            order=order,
            blocks=self.blocks,
            base=self.base,
        )

    def fill(self, seed: int) -> None:
        """Writes random finite keys, values and scales everywhere."""
        units = self.blocks * self.layers
        count = max(1, min(units, _TEMPLATE_BYTES // self.unit))
        target = self.arena[self.base : self.base + self.nbytes].view(units, self.unit)
        self._fill_units(target[:count], seed)
        for start in range(count, units, count):
            stop = min(units, start + count)
            target[start:stop] = target[: stop - start]

    def _fill_units(self, units: torch.Tensor, seed: int) -> None:
        layout, count = self.layout, units.shape[0]
        draw = torch.Generator(device=units.device).manual_seed(seed)
        flat, size = units.view(-1), layout.dtype.itemsize
        shape = (count, layout.num_kv_heads, 2, layout.block_size, layout.head_dim)
        values = torch.randn(shape, generator=draw, device=units.device)
        if layout.is_quantised:
            most = QUANTISED_MAX[layout.dtype]
            peak = values.abs().amax(-1, keepdim=True)
            values = (values / peak * most).clamp(-most, most)
            values = values.round() if layout.dtype is torch.int8 else values
            scales = (peak / most)[..., 0]
            strides = (self.unit // 4, layout.head_stride // 4, layout.block_size, 1)
            place = flat.view(torch.float32)[layout.scale_offset // 4 :]
            torch.as_strided(place, shape[:-1], strides).copy_(scales)
        elements = flat.view(layout.dtype)
        steps = (self.unit // size, layout.head_stride // size, layout.kv_stride // size)
        torch.as_strided(elements, shape, (*steps, layout.token_stride // size, 1)).copy_(
            values.to(layout.dtype)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's rows on the device; lists of the same on the host."""

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    slots: torch.Tensor
    block_table: torch.Tensor
    query_lens: tuple[int, ...]
    lens: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.lens)

    @property
    def tokens(self) -> int:
        return sum(self.query_lens)


def make_batch(
    pool: Pool,
    lens: Sequence[int],
    query_lens: Sequence[int] | None = None,
    *,
    seed: int,
    slots: int | None = None,
) -> Batch:
    """Rows of so many keys and queries (one each unless given), at random blocks of the whole pool.

    A row without queries is padding and has no keys. Raises ValueError where the pool is too small.
    """
    queries = tuple(query_lens) if query_lens is not None else tuple(1 if n else 0 for n in lens)
    size = pool.layout.block_size
    counts = [-(-n // size) for n in lens]
    if sum(counts) > pool.blocks:
        raise ValueError(f"lens need {sum(counts)} blocks, the pool has {pool.blocks}")
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(pool.blocks, generator=draw)
    lines = max(slots or 0, len(lens))
    line_of_row = torch.randperm(lines, generator=draw)[: len(lens)]
    table = torch.zeros((lines, max(1, *counts)), dtype=torch.int32)
    taken = 0
    for row, count in enumerate(counts):
        table[line_of_row[row], :count] = pool.entries(order[taken : taken + count])
        taken += count
    device = pool.arena.device
    starts = torch.tensor([0, *queries]).cumsum(0).int()
    return Batch(
        query_start=starts.to(device),
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        slots=line_of_row.int().to(device),
        block_table=table.to(device),
        query_lens=queries,
        lens=tuple(lens),
    )


def zipf_lengths(rows: int, low: int, high: int, *, seed: int, most: int) -> list[int]:
    """Lengths from `low` to `high`, few of them long (1 / length), together at most `most`."""
    draw = torch.Generator().manual_seed(seed)
    u = torch.rand(rows, generator=draw, dtype=torch.float64)
    lens = [int(low * (high / low) ** float(x)) for x in u]
    shrink = min(1.0, most / sum(lens))
    return [max(low, int(n * shrink)) for n in lens]


def random_queries(
    batch: Batch, heads: Heads, dtype: torch.dtype, device: torch.device, seed: int
) -> torch.Tensor:
    """Queries [kv_heads, tokens, group, head_dim]."""
    draw = torch.Generator(device=device).manual_seed(seed)
    shape = (heads.kv_heads, batch.tokens, heads.group, heads.head_dim)
    return torch.randn(shape, generator=draw, device=device).to(dtype)
