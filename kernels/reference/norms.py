"""Norms and gated activations, in float32 whatever the tensors hold."""

from __future__ import annotations

import torch


def _write(result: torch.Tensor, out: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return result.to(dtype) if out is None else out.copy_(result)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x scaled to a mean square of 1 along its last dimension, times weight; in `out`, or new in x's dtype."""
    wide = x.float()
    return _write(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight, out, x.dtype)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Adds x to residual, rounded to its dtype, and returns the norm of that; in `out`, or new in x's dtype."""
    residual.copy_(residual.float() + x.float())
    return _write(rms_norm(residual.float(), weight, eps), out, x.dtype)


def rms_norm_add(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor) -> None:
    """Adds the norm of x to residual, rounded once."""
    residual.copy_(residual.float() + rms_norm(x.float(), weight, eps))


def glu(gate_up: torch.Tensor, out: torch.Tensor | None = None, *, activation: str = "silu") -> torch.Tensor:
    """act(gate) * up, where gate is the first half of the last dimension and up the second."""
    gate, up = gate_up.float().chunk(2, -1)
    if activation == "silu":
        gate = torch.nn.functional.silu(gate)
    elif activation == "gelu_tanh":
        gate = torch.nn.functional.gelu(gate, approximate="tanh")
    else:
        raise ValueError(f"activation must be silu or gelu_tanh, got {activation}")
    return _write(gate * up, out, gate_up.dtype)
