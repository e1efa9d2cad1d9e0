"""Arrays in the formats that the CPU kernels take: float32, and bfloat16 as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from airi._core import cpu

F32Array = npt.NDArray[np.float32]
U16Array = npt.NDArray[np.uint16]
Array = npt.NDArray[Any]


def to_bf16(x: Array) -> U16Array:
    """Rounds to nearest even, independently of the code under test."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: U16Array) -> F32Array:
    return (x.astype(np.uint32) << 16).view(np.float32)


def encode(x: Array, dtype: cpu.DType) -> Array:
    """x as the kernels take it in `dtype`."""
    return to_bf16(x) if dtype is cpu.DType.BF16 else np.ascontiguousarray(x, dtype=np.float32)


def decode(x: Array) -> npt.NDArray[np.float64]:
    """The exact values of an encoded array."""
    return (from_bf16(x) if x.dtype == np.uint16 else x).astype(np.float64)


def poison(*shape: int, dtype: cpu.DType = cpu.DType.F32) -> Array:
    """An output that nobody wrote: all NaN."""
    return encode(np.full(shape, np.nan, dtype=np.float32), dtype)


def address(x: Array | None) -> int:
    """Where a contiguous array starts; 0 for none."""
    if x is None:
        return 0
    assert x.flags.c_contiguous
    return int(x.ctypes.data)
