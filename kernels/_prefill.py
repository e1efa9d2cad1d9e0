"""What the prefill kernels are launched with: tiles by architecture, and checked arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from ._checks import FLOATS, check, check_tensor
from ._values import check_attended, is_seen, tiled_rows
from .arch import Arch
from .decode_tiles import HEAD_DIMS, MAX_GROUP
from .layout import GRANULE_BYTES, KvLayout

_MOST_KEYS = 64
"""Of a tile of keys in blocks that may be smaller than it."""


class HasTiles(Protocol):
    """What prefill reads of an attention plan."""

    @property
    def tiles(self) -> torch.Tensor:
        """int32 [max_tiles, 2]: a row and which of its query tiles; row -1 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How the work is cut into programs."""

    block_m: int
    """Query rows of a program: tile_queries tokens times the query heads of a kv head, the rest masked."""
    tile: int
    """Keys that are taken at a time."""
    num_warps: int
    num_stages: int
    tile_queries: int
    """Tokens of a query tile: what the planner is to cut rows by."""


def prefill_tiles(
    arch: Arch, head_dim: int, group: int, dtype: torch.dtype, block_size: int, *, has_window: bool = False
) -> Tiles:
    """The tiles for keys and values of `dtype`, whichever prefill kernel runs; raises ValueError for what none has.

    `tile_queries` does not depend on `has_window`: layers with and without one share a plan's tiles.
    """
    check_shapes(head_dim, group, block_size)
    check("dtype", dtype, f"one of {FLOATS}", ok=dtype in FLOATS)
    is_masked = has_window or block_size < 64
    block_m, tile, num_warps, num_stages = _cut(arch, head_dim, group, dtype, is_masked=is_masked)
    return Tiles(
        block_m=block_m,
        tile=tile,
        num_warps=num_warps,
        num_stages=num_stages,
        tile_queries=block_m // group,
    )


def _cut(
    arch: Arch, head_dim: int, group: int, dtype: torch.dtype, *, is_masked: bool
) -> tuple[int, int, int, int]:
    """Query rows, keys, warps, stages: the largest that Triton 3.6.0 and 3.7.1 compile without a spill.

    `is_masked`: a window, or blocks of less than 64 keys, which take registers of their own.
    """
    if dtype is torch.float32:
        # Without matrix units threads hold whole rows of their operands: 32 rows spill up to 8 KiB on sm_90, 16 of
        # four warps 350 bytes at 128, and masked tiles of 32 keys 8 bytes on sm_100. Eight warps have too little of
        # rows of 32 or 64 to read them wide.
        rows, is_wide = 32 if arch.is_amd else 16, head_dim > 64
        tile = 16 if head_dim > 128 or (is_wide and is_masked) else 32
        return (rows, tile, 8 if is_wide and head_dim <= 128 and not arch.is_amd else 4, 2)
    if arch.is_amd:
        return _cut_amd(head_dim, is_masked=is_masked)
    if arch.has_tma:
        return (128, 64, 8, 3) if arch.name == "sm_90" else _cut_blackwell(head_dim)
    if head_dim <= 64:
        return (128, 64, 8, 3)
    if head_dim <= 128 and group & (group - 1):
        # Rows of a group that is no power of two have addresses of their own: 128 of them spill 32 bytes on sm_80.
        return (64, 64, 8, 3)
    return (128, 32, 8, 3) if head_dim <= 128 else (64, 32, 8, 3)


def _cut_amd(head_dim: int, *, is_masked: bool) -> tuple[int, int, int, int]:
    if head_dim <= 32:
        return (128, 64, 4, 2)  # a tile of 4 KiB is 16 bytes for each of 256 threads
    if head_dim <= 128:
        # 64 keys spill up to 15 scalar registers where they are masked; 32 of 64 elements are too few to read wide.
        return (128, 32, 8, 2) if is_masked and head_dim > 64 else (128, 64, 8, 2)
    return (64, 32, 8, 2)  # four warps spill with 3.7.1


def _cut_blackwell(head_dim: int) -> tuple[int, int, int, int]:
    if head_dim == 64:
        return (128, 64, 4, 3)  # eight warps have 128 registers each with 3.7.1 and spill 16 bytes
    return (128, 64, 8, 3) if head_dim <= 128 else (128, 32, 8, 3)  # 64 keys spill 40 bytes at 256


def check_shapes(head_dim: int, group: int, block_size: int) -> None:
    """Raises ValueError for what no attention kernel is compiled for."""
    check("head_dim", head_dim, f"one of {HEAD_DIMS}", ok=head_dim in HEAD_DIMS)
    check("query heads per kv head", group, f"1 to {MAX_GROUP}", ok=1 <= group <= MAX_GROUP)
    check("block_size", block_size, "8 to 256", ok=8 <= block_size <= 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """The checked arguments of one call; shapes as paged_prefill has them."""

    q: torch.Tensor
    arena: torch.Tensor
    layout: KvLayout
    block_table: torch.Tensor
    slots: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    tiles: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor | None
    scale: float
    softcap: float
    window: int
    layer_offset: int
    num_tiles: int

    def __post_init__(self) -> None:
        q, layout, device = self.q, self.layout, self.q.device
        check_tensor("q", q, FLOATS, (layout.num_kv_heads, None, None, layout.head_dim), contiguous=False)
        kv_heads, tokens, group, head_dim = q.shape
        check_shapes(head_dim, group, layout.block_size)
        accepted = f"{q.dtype}, as q (quantised blocks are multiplied out by gather_dequant first)"
        check("layout.dtype", layout.dtype, accepted, ok=layout.dtype is q.dtype)
        check_tensor("arena", self.arena, torch.uint8, (None,), device)
        size = self.arena.numel()
        check("arena", f"{size} bytes", f"a multiple of {GRANULE_BYTES}", ok=size % GRANULE_BYTES == 0)
        check_tensor("block_table", self.block_table, torch.int32, (None, None), device)
        check_tensor("seq_lens", self.seq_lens, torch.int32, (None,), device)
        rows = self.seq_lens.shape[0]
        check_tensor("slots", self.slots, torch.int32, (rows,), device)
        check_tensor("query_start", self.query_start, torch.int32, (rows + 1,), device)
        check_tensor("plan.tiles", self.tiles, torch.int32, (None, 2), device)
        heads = kv_heads * group
        check_tensor("out", self.out, q.dtype, (tokens, heads, head_dim), device, contiguous=False)
        if self.lse is not None:
            check_tensor("lse", self.lse, torch.float32, (tokens, heads), device)
        self._check_numbers()
        if is_seen(device):
            self._check_values()

    def _check_numbers(self) -> None:
        most, itemsize = self.tiles.shape[0], self.layout.dtype.itemsize
        check("num_tiles", self.num_tiles, f"0 to the plan's {most}", ok=0 <= self.num_tiles <= most)
        check("scale", self.scale, "finite", ok=math.isfinite(self.scale))
        softcap_ok = math.isfinite(self.softcap) and self.softcap >= 0
        check("softcap", self.softcap, "0 (none) or more", ok=softcap_ok)
        check("window", self.window, "0 (none) or more", ok=self.window >= 0)
        offset_ok = 0 <= self.layer_offset < max(1, self.arena.numel()) and self.layer_offset % itemsize == 0
        accepted = f"a multiple of {itemsize} inside the arena's {self.arena.numel()} bytes"
        check("layer_offset", self.layer_offset, accepted, ok=offset_ok)

    def _check_values(self) -> None:
        check_attended(
            tiled_rows(self.tiles[: self.num_tiles], self.seq_lens),
            self.query_start,
            self.q.shape[1],
            self.seq_lens,
            self.slots,
            self.block_table,
            self.layout,
            self.arena,
            self.layer_offset,
            self.window,
            _MOST_KEYS,
        )

    @property
    def group(self) -> int:
        """Query heads of a kv head."""
        return int(self.q.shape[2])

    @property
    def grid(self) -> tuple[int, int]:
        """Programs of every prefill kernel: (tiles, kv_heads)."""
        return self.num_tiles, self.layout.num_kv_heads
