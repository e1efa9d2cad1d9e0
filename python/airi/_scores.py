"""What becomes of the numbers that models give for texts: shorter vectors, scores, probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airi.errors import RequestError

__all__ = ["check_dimensions", "cosines", "probabilities", "shortened", "sigmoid"]


def shortened(vectors: NDArray[np.float32], size: int, *, normalizes: bool) -> NDArray[np.float32]:
    """The first `size` numbers of vectors [n, d], of length 1 again where the model `normalizes`."""
    cut = np.ascontiguousarray(vectors[:, :size])
    return _unit(cut) if normalizes and size < vectors.shape[1] else cut


def check_dimensions(asked: int | None, size: int, shorter: tuple[int, ...] | None) -> None:
    """Raises RequestError for vectors of another size than a model's own, or one that they may be cut to.

    `shorter`: those sizes; empty: any; None: none.
    """
    if asked is None or asked == size:
        return
    if shorter is None:
        accepted = f"{size} alone, as this model's vectors may not be cut"
    else:
        accepted = ", ".join(map(str, sorted({*shorter, size}))) if shorter else f"1 to {size}"
        if 0 < asked < size and (not shorter or asked in shorter):
            return
    raise RequestError(f"dimensions: is {asked}; accepted: {accepted}", field="dimensions")


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n] of vectors [n or 1, d] with vectors [n, d]; 0 for a vector of zeros."""
    found: NDArray[np.float64] = (_unit(first) * _unit(second)).sum(axis=1, dtype=np.float64)
    return found


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), in a form that no x is too large for."""
    found: NDArray[np.float64] = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))
    return found


def probabilities(logits: NDArray[np.float32], *, is_multi_label: bool) -> NDArray[np.float64]:
    """[texts, labels] of logits [texts, labels]: softmax, but a sigmoid each where labels do not exclude each other."""
    if is_multi_label or logits.shape[1] == 1:
        return sigmoid(logits)
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    # As torch.nn.functional.normalize, which divides by 1e-12 at least.
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return found
