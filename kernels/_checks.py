"""Checks of arguments: a mistake is a ValueError that names the argument, what is accepted and what was found."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What kernels compute with."""


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
    # Without a generator or a new tuple where all is well: layers of steps that are not captured call it a hundred
    # times, and the device waits for them.
    found_shape, dtype = tensor.shape, tensor.dtype
    fits = len(found_shape) == len(shape)
    if fits:
        for want, size in zip(shape, found_shape, strict=True):
            if want is not None and want != size:
                fits = False
    if not fits or (dtype is not dtypes and (isinstance(dtypes, torch.dtype) or dtype not in dtypes)):
        accepted = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
        found = f"{str(dtype).removeprefix('torch.')} {list(found_shape)}"
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
