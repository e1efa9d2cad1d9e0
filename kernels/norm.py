"""RMS norms over rows of hidden states, with the residual added before or after."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._checks import FLOATS, check, check_tensor
from ._convert import rounded
from ._launch import INTERPRETED, launch_guard
from .limits import MAX_HIDDEN


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, rows, eps,
    stride_x: tl.int64, stride_residual: tl.int64, stride_out: tl.int64,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    o_rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    o_columns = tl.arange(0, BLOCK)[None, :]
    mask = (o_rows < rows) & (o_columns < HIDDEN)
    b_x = tl.load(x_ptr + o_rows * stride_x + o_columns, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    residual_at = residual_ptr + o_rows * stride_residual + o_columns
    if ADD != "none":
        b_residual = tl.load(residual_at, mask=mask, other=0.0).to(tl.float32)
    if ADD == "before":
        b_sum = rounded(b_x + b_residual, residual_ptr.dtype.element_ty, UPCAST)
        tl.store(residual_at, b_sum, mask=mask)
        b_x = b_sum.to(tl.float32)
    factor = tl.rsqrt(tl.sum(b_x * b_x, 1) / HIDDEN + eps)[:, None]
    b_weight = tl.load(weight_ptr + o_columns, mask=o_columns < HIDDEN, other=0.0)  # [1, BLOCK]
    b_x = b_x * factor * b_weight
    if ADD == "after":
        tl.store(residual_at, rounded(b_residual + b_x, residual_ptr.dtype.element_ty, UPCAST), mask=mask)
    else:
        out_at = out_ptr + o_rows * stride_out + o_columns
        tl.store(out_at, rounded(b_x, out_ptr.dtype.element_ty, UPCAST), mask=mask)


def norm_tiles(hidden: int) -> tuple[int, int]:
    """Rows per program and warps for rows of `hidden` columns: 16 columns a thread, 32 from 8,193 on."""
    block = triton.next_power_of_2(hidden)
    return max(1, 512 // block), min(16, max(1, block // 512))


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """out = x * rsqrt(mean(x^2) + eps) * weight, in float32 and rounded once; returns out.

    x is [T, H] in bf16, fp16 or fp32, its rows may lie apart, H up to 16,384; weight float32 [H]; out [T, H] in any of
    the three, None: new, in x's dtype. Grid: (T / rows per program). Raises ValueError for tensors that do not fit.
    """
    _check(x, weight)
    out = torch.empty_like(x) if out is None else out
    check_tensor("out", out, FLOATS, x.shape, x.device, contiguous=False)
    _launch(x, x, weight, out, eps, add="none")
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """residual += x, rounded to residual's dtype; then as `rms_norm` of that: out = norm(residual) * weight.

    residual [T, H] in bf16, fp16 or fp32, in place; out as in `rms_norm`, which may be x.
    """
    _check(x, weight)
    out = torch.empty_like(x) if out is None else out
    check_tensor("residual", residual, FLOATS, x.shape, x.device, contiguous=False)
    check_tensor("out", out, FLOATS, x.shape, x.device, contiguous=False)
    _launch(x, residual, weight, out, eps, add="before")
    return out


def rms_norm_add(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor) -> None:
    """residual += norm(x) * weight, rounded once to residual's dtype; shapes as in `add_rms_norm`."""
    _check(x, weight)
    check_tensor("residual", residual, FLOATS, x.shape, x.device, contiguous=False)
    _launch(x, residual, weight, x, eps, add="after")


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    check_tensor("x", x, FLOATS, (None, None), contiguous=False)
    hidden = x.shape[1]
    check("columns of x", hidden, f"1 to {MAX_HIDDEN}", ok=1 <= hidden <= MAX_HIDDEN)
    check_tensor("weight", weight, torch.float32, (hidden,), x.device)


def _launch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, *, add: str
) -> None:
    rows, hidden = x.shape
    if rows == 0:
        return
    rows_per_program, num_warps = norm_tiles(hidden)
    with launch_guard():
        _norm_kernel[(-(-rows // rows_per_program),)](
            x, residual, weight, out, rows, eps, x.stride(0), residual.stride(0), out.stride(0),
            HIDDEN=hidden, BLOCK=triton.next_power_of_2(hidden), ROWS=rows_per_program, ADD=add,
            UPCAST=INTERPRETED, num_warps=num_warps,
        )  # fmt: skip
