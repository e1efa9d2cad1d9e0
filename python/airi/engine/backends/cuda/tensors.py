"""Weights that can move: tensors that keep their identity while their memory changes, and products with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from airi.engine.backends.cuda.ops import Ops

__all__ = ["FewRows", "Linear", "Weight", "place", "placed_bytes"]

_ALIGNMENT = 512
"""Bytes: what the device's allocator keeps to, so that kernels compile and choose the same for placed weights."""


class Weight:
    """One weight, shared by all that use it; `tensor` is replaced when it moves.

    Quantised ones are torch subclasses of several plain tensors, their parts.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is its own only part."""
        return not hasattr(self.tensor, "__tensor_flatten__")

    def parts(self) -> list[torch.Tensor]:
        """The plain tensors that hold the weight, always in the same order."""
        if self.is_plain:
            return [self.tensor]
        names, _ = _flatten(self.tensor)
        return [getattr(self.tensor, name) for name in names]

    def replace(self, parts: Sequence[torch.Tensor]) -> None:
        """Takes these tensors, equal in shape and value, for its parts."""
        if self.is_plain:
            (self.tensor,) = parts
            return
        names, context = _flatten(self.tensor)
        subclass: Any = type(self.tensor)
        inner = dict(zip(names, parts, strict=True))
        self.tensor = subclass.__tensor_unflatten__(inner, context, self.tensor.shape, self.tensor.stride())


def _flatten(tensor: Any) -> tuple[list[str], Any]:
    names, context = tensor.__tensor_flatten__()
    return [name for name in names if getattr(tensor, name) is not None], context


def placed_bytes(weights: Iterable[Weight]) -> int:
    """Bytes that `place` needs."""
    return sum(_aligned(part.nbytes) for weight in weights for part in weight.parts())


def place(weights: Iterable[Weight], memory: torch.Tensor) -> None:
    """Moves the weights into uint8 memory, one behind the other; their old memory is free afterwards."""
    at = 0
    for weight in weights:
        moved = []
        for part in weight.parts():
            target = memory[at : at + part.nbytes].view(part.dtype).view(part.shape)
            target.copy_(part)
            moved.append(target)
            at += _aligned(part.nbytes)
        weight.replace(moved)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class Linear:
    """y = x @ W.T + bias, W [n, k]."""

    __slots__ = ("_few_rows", "bias", "n", "weight")

    def __init__(self, weight: Weight, bias: Weight | None = None, few_rows: FewRows | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.n = int(weight.tensor.shape[0])
        self._few_rows = few_rows

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The product for x [m, k]; in `out` [m, n], or in memory of its own where the weight is quantised."""
        import torch

        weight, bias = self.weight.tensor, None if self.bias is None else self.bias.tensor
        if self.weight.is_plain:
            if bias is None:
                return torch.mm(x, weight.t(), out=out)
            return torch.addmm(bias, x, weight.t(), out=out)
        if self._few_rows is None or len(x) > FewRows.MOST:
            return torch.nn.functional.linear(x, weight, bias)
        values, scales, *_ = self.weight.parts()
        self._few_rows(x, values, scales, out)
        return out if bias is None else out.add_(bias)

    def weights(self) -> list[Weight]:
        """All that can move."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class FewRows:
    """Products of few rows with 8-bit weights, read as they are: as if these were those of a single expert.

    torchao widens a weight first, which moves five times its bytes; with many rows that matters less than the speed
    of the product itself.
    """

    MOST = 256
    """Rows: two tiles of the largest size."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        import torch

        self._ops = ops
        self._order = torch.arange(self.MOST, dtype=torch.int32, device=device)
        half = self.MOST // 2
        # By number of rows: up to two tiles of expert 0, first row and number of rows. Each line is aligned.
        lines = [
            [0, 0, min(count, half), 0, half, max(0, count - half), *[0] * 10]
            for count in range(self.MOST + 1)
        ]
        self._tiles = torch.tensor(lines, dtype=torch.int32, device=device)

    def __call__(
        self, x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor
    ) -> None:
        """out [m, n] = (x [m, k] @ values [n, k].T) * scales [n, 1]."""
        count = len(x)
        tile_rows = next(rows for rows in (16, 64, 128) if rows >= min(count, 128))
        tiles = self._tiles[count, : 3 * -(-count // tile_rows)].view(-1, 3)
        order = self._order[:count]
        self._ops.expert_matmul(x, values[None], scales.view(1, -1), order, tiles, out, tile_rows=tile_rows)
