"""How decoding is cut for an architecture: a pure function, so that it is tested without a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._checks import check
from .arch import Arch

HEAD_DIMS = (32, 64, 80, 96, 128, 256)
BLOCK_SIZES = (8, 16, 32, 64, 128, 256)
KV_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8)
MAX_GROUP = 16
PROGRAMS_PER_SM = 16
"""Programs launched at most: some four times what fits a multiprocessor, so that they even out among themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTiles:
    """The compile-time choices of one decode kernel."""

    tile: int
    """Keys of one step, a power of two: it divides the block size or, where that is smaller, is a multiple of it."""
    num_warps: int
    num_stages: int


def decode_tiles(arch: Arch, head_dim: int, block_size: int, dtype: torch.dtype, group: int) -> DecodeTiles:
    """Tiles for keys and values of `dtype`. Raises ValueError for what no kernel is built for."""
    check("head_dim", head_dim, f"one of {HEAD_DIMS}", ok=head_dim in HEAD_DIMS)
    check("block_size", block_size, f"one of {BLOCK_SIZES}", ok=block_size in BLOCK_SIZES)
    check("dtype", dtype, "float32, float16, bfloat16, float8_e4m3fn or int8", ok=dtype in KV_DTYPES)
    check("group", group, f"1 to {MAX_GROUP} query heads per kv head", ok=1 <= group <= MAX_GROUP)
    return DecodeTiles(tile=64, num_warps=4, num_stages=5)
