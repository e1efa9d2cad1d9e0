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
    max_registers: int | None = None
    """Per thread. The assembler left alone aims at 128 or 168 and spills a little for it."""


def decode_tiles(arch: Arch, head_dim: int, block_size: int, dtype: torch.dtype, group: int) -> DecodeTiles:
    """Tiles for keys and values of `dtype`. Raises ValueError for what no kernel is built for.

    A loop step's loads of keys and values are two of the stages behind those of its table entries, so 5 stages hold
    two tiles of each in flight and 3 stages one. Compile facts of Triton 3.6.0 at block size 64, all without spills:

        sm_90, sm_80   16 bit, D 128: 71,688 B shared, three programs a multiprocessor, so 168 registers are free
                       16 bit, D 64: 36,872 B; D 256 with tiles of 32: 74,760 B
                       8 bit, D 128: 39,944 B; D 256: 76,808 B and up to 217 registers, two programs
                       8 bit, D 64: 19,464 B. One warp: four products of 16 columns are not shared out among
                       warps but done by each (loop of 1,009 instructions by one warp, of 1,283 by each of four)
                       32 bit, D 128 with tiles of 32: 43,012 B, no matrix units
        sm_86, sm_89   3 stages: 16 bit, D 128: 38,916 B, two programs of 99 KiB
        gfx942         3 stages: 16 bit, D 128: 32,768 B of 64 KiB; 5 would be 98,304 B
    """
    check("head_dim", head_dim, f"one of {HEAD_DIMS}", ok=head_dim in HEAD_DIMS)
    check("block_size", block_size, f"one of {BLOCK_SIZES}", ok=block_size in BLOCK_SIZES)
    check("dtype", dtype, "float32, float16, bfloat16, float8_e4m3fn or int8", ok=dtype in KV_DTYPES)
    check("group", group, f"1 to {MAX_GROUP} query heads per kv head", ok=1 <= group <= MAX_GROUP)
    wide = head_dim > 128
    # Addresses of several blocks beside 32 keys of 32 bits spill 16 bytes on sm_90.
    tile = {4: 16 if wide or block_size < 32 else 32, 2: 32 if wide else 64, 1: 64}[dtype.itemsize]
    stages = 5 if arch.max_shared >= 160 * 1024 and dtype.itemsize < 4 else 3
    num_warps = 1 if dtype.itemsize == 1 and head_dim <= 64 else 4
    if num_warps == 1:
        registers = 192  # ten programs, as many as shared memory takes; with 168 Triton 3.7.1 spills 24 bytes
    elif (wide and dtype.itemsize == 1) or block_size < tile:
        registers = 255  # addresses of several blocks: with 168 Triton 3.7.1 spills 8 bytes
    else:
        registers = 168
    return DecodeTiles(
        tile=tile,
        num_warps=num_warps,
        num_stages=stages,
        max_registers=None if arch.is_amd else registers,
    )
