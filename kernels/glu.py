"""Gated activations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._checks import FLOATS, check, check_tensor
from ._convert import rounded
from ._launch import INTERPRETED, launch_guard
from .arch import Arch, arch_of

ACTIVATIONS = ("silu", "gelu_tanh")


@triton.jit
def _glu_kernel(
    gate_up_ptr, out_ptr, stride_in: tl.int64, stride_out: tl.int64,
    WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i_row = tl.program_id(0).to(tl.int64)
    o_columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = o_columns < WIDTH
    row_ptr = gate_up_ptr + i_row * stride_in
    b_gate = tl.load(row_ptr + o_columns, mask=mask, other=0.0).to(tl.float32)  # [BLOCK]
    b_up = tl.load(row_ptr + WIDTH + o_columns, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        b_exponent = -b_gate
    else:
        b_inner = 0.7978845608028654 * (b_gate + 0.044715 * b_gate * b_gate * b_gate)
        b_exponent = -2 * b_inner  # (1 + tanh(x)) / 2 = 1 / (1 + exp(-2x))
    b_gate = b_gate / (1 + tl.exp(tl.minimum(b_exponent, 88.0)))  # exp(89) is infinite
    out_at = out_ptr + i_row * stride_out + o_columns
    tl.store(out_at, rounded(b_gate * b_up, out_ptr.dtype.element_ty, UPCAST), mask=mask)


def glu_block(itemsize: int, arch: Arch) -> int:
    """Columns of a program of four warps: 16 bytes of gate a thread."""
    return 4 * arch.lanes * 16 // itemsize


def glu(gate_up: torch.Tensor, out: torch.Tensor | None = None, *, activation: str = "silu") -> torch.Tensor:
    """out = act(gate) * up, in float32 and rounded once; returns out.

    gate_up is [T, 2 I] in bf16, fp16 or fp32: gate, then up; out [T, I] in the same dtype, None: new.

        silu(x) = x / (1 + exp(-x))      gelu_tanh(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))

    Grid: (T, I / block). Raises ValueError for tensors that do not fit and other activations.
    """
    check_tensor("gate_up", gate_up, FLOATS, (None, None), contiguous=False)
    rows, both = gate_up.shape
    check("columns of gate_up", both, "an even number above 0", ok=both % 2 == 0 and both > 0)
    check("activation", activation, " or ".join(ACTIVATIONS), ok=activation in ACTIVATIONS)
    width = both // 2
    out = gate_up.new_empty(rows, width) if out is None else out
    check_tensor("out", out, gate_up.dtype, (rows, width), gate_up.device, contiguous=False)
    if rows == 0:
        return out
    block = glu_block(gate_up.dtype.itemsize, arch_of(gate_up.device))
    with launch_guard():
        _glu_kernel[(rows, -(-width // block))](
            gate_up, out, gate_up.stride(0), out.stride(0),
            WIDTH=width, ACTIVATION=activation, BLOCK=block, UPCAST=INTERPRETED, num_warps=4,
        )  # fmt: skip
    return out
