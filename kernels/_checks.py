"""Checks of arguments: a mistake is a ValueError that names the argument, what is accepted and what was found."""

from __future__ import annotations

import torch


def require(ok: bool, name: str, value: object, accepted: str) -> None:  # noqa: FBT001
    """Raises ValueError unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value}, accepted is {accepted}")


def require_tensor(
    name: str, tensor: torch.Tensor, dtype: torch.dtype | None, shape: tuple[int | None, ...]
) -> None:
    """Raises ValueError unless the tensor has the dtype (None: any) and shape (a size of None: any)."""
    fits = tensor.dim() == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=False)
    )
    if fits and dtype in (None, tensor.dtype):
        return
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(
        f"{name} must be {dtype or 'a tensor'} [{wanted}], got {tensor.dtype} {list(tensor.shape)}"
    )
