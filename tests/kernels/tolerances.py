"""The one table of how far kernels may be from float64 results computed from the stored keys and values."""

from __future__ import annotations

import torch

RELATIVE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""||out - expected|| / ||expected|| by the dtype of input and output; bfloat16: the interpreter truncates."""
RELATIVE_ON_DEVICE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""The same on a GPU, which rounds to nearest."""
RELATIVE_QUANTISED = 5e-3
"""Against the dequantised keys and values."""
RELATIVE_QUANTISED_ON_DEVICE = 1e-2
RELATIVE_UNQUANTISED = 6e-2
"""8-bit keys and values against those they were made from."""
LSE = 1e-4
"""Absolute, natural logarithm."""
LSE_ON_DEVICE = 1e-3


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected|| in float64; infinite where `out` is not finite but `expected` is."""
    if not bool(torch.isfinite(out).all()):
        return float("inf")
    difference = (out.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-30))
