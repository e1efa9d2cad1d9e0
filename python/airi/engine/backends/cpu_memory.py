"""Where packed matrices of the CPU kernels lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airi._core import cpu
from airi.engine.arena import allocate_arena

__all__ = ["bytes_together", "move_together", "moved_together"]

_LINE = 64

Packed = cpu.PackedLinear | cpu.PackedGLU


def bytes_together(matrices: Sequence[Packed]) -> int:
    """Bytes that `move_together` needs."""
    return sum(_aligned(matrix) for matrix in matrices)


def move_together(matrices: Sequence[Packed], memory: NDArray[np.uint8]) -> None:
    """Moves the matrices to memory of the caller, side by side. Raises ValueError where it is too small."""
    if memory.nbytes < bytes_together(matrices):
        raise ValueError(f"memory must hold {bytes_together(matrices)} bytes, got {memory.nbytes}")
    at = memory.ctypes.data
    for matrix in matrices:
        matrix.move_to(at)
        at += _aligned(matrix)


def moved_together(matrices: Sequence[Packed]) -> NDArray[np.uint8]:
    """New memory that the matrices have been moved to: together they fill huge pages, alone most do not."""
    memory = allocate_arena(bytes_together(matrices))
    move_together(matrices, memory)
    return memory


def _aligned(matrix: Packed) -> int:
    return -(-matrix.nbytes // _LINE) * _LINE
