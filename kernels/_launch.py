"""What the launchers of Triton kernels share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import torch
import triton

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on a CPU. Its bfloat16 is wrong: they use float32 then."""

_interpreter = threading.Lock()


def launch_guard() -> contextlib.AbstractContextManager[object]:
    """To be held around a launch: the interpreter patches globals, so only one may run at a time."""
    return _interpreter if INTERPRETED else contextlib.nullcontext()


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    dtypes: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | None],
    device: torch.device | None = None,
    *,
    contiguous: bool = True,
) -> None:
    """Raises ValueError naming the argument unless dtype, shape (a size of None: any), device and order fit."""
    accepted = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    fits = tensor.dim() == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in accepted:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
        found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise ValueError(f"{name} must be {kinds} [{wanted}], got {found}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(tensor.stride())}")
    if not contiguous and tensor.dim() and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(
            f"{name} must be contiguous in its last dimension, got strides {list(tensor.stride())}"
        )


def check(name: str, value: object, accepted: str, *, ok: bool) -> None:
    """Raises ValueError naming the argument, what is accepted and what was found, unless `ok`."""
    if not ok:
        raise ValueError(f"{name} must be {accepted}, got {value}")
