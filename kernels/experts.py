"""Products of rows with the weights of the experts they were routed to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ._checks import FLOATS, check, check_tensor
from ._launch import INTERPRETED, launch_guard
from .arch import Arch, arch_of
from .expert_plan import TILE_ROWS

_QUANTISED = (torch.float8_e4m3fn, torch.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTiles:
    """How one product is cut into programs."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def expert_tiles(arch: Arch, rows: int, x_bytes: int, weight_bytes: int) -> ExpertTiles:
    """Tiles for `rows` rows of elements of these sizes: as deep a pipeline as shared memory holds.

    Few rows read weights and do little else: narrow tiles, so that a step of one token fills the device.
    """
    if x_bytes == 4:
        block_n, block_k, warps = _float32_tiles(arch, rows, weight_bytes)
    elif rows == 16:
        block_n, block_k, warps = 64, 128, 4
    elif rows == 64:
        block_n, block_k, warps = 128, 64, 4
    else:
        # Eight warps need 128 of k for each thread to load 16 bytes of 8-bit weights, and spill with 128 columns of
        # them on sm_80; AMD's are twice as wide, and need both. On sm_100 it is 64 columns of int8 that spill 8 bytes
        # with Triton 3.7.1, whatever the stages, and 128 with three of them.
        wide = arch.is_amd or arch.name == "sm_100"
        block_n, block_k, warps = (128, 64, 8) if weight_bytes > 1 else (128 if wide else 64, 128, 8)
    stage = block_k * (rows * x_bytes + block_n * weight_bytes)
    buffers = arch.max_shared // stage
    # Five stages of 8-bit weights spill 8 bytes with Triton 3.7.1.
    most = 5 if rows == 16 and weight_bytes > 1 else 4
    if arch.name == "sm_100" and rows == 128 and weight_bytes == 1:
        most = 2
    stages = min(most, buffers + 1 if arch.is_amd else buffers)
    return ExpertTiles(block_n=block_n, block_k=block_k, num_warps=warps, num_stages=max(2, stages))


def _float32_tiles(arch: Arch, rows: int, weight_bytes: int) -> tuple[int, int, int]:
    """Columns, width and warps for float32 rows: for checks, so that all that counts is that nothing spills."""
    if arch.is_amd:
        return 64, 32, 2
    if weight_bytes > 1:
        return 32, 32, 4
    # Without matrix units a thread holds all that it multiplies of weights it has converted: with 128 rows, 32 columns
    # and 32 of k spill 384 bytes on sm_80; eight warps that share 16 of k are held to 128 registers on sm_90 and spill.
    return {16: (32, 64, 4), 64: (32, 16, 4), 128: (16, 16, 4)}[rows]


@triton.jit(do_not_specialize=["num_columns"])
def _expert_matmul_kernel(
    x_ptr,
    weight_ptr,
    scales_ptr,
    order_ptr,
    tiles_ptr,
    row_weights_ptr,
    out_ptr,
    stride_x: tl.int64,
    stride_out: tl.int64,
    stride_expert: tl.int64,
    num_columns,
    K: tl.constexpr,
    REPEATS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of one expert's rows and BN columns. Grid: (columns / BN, tiles)."""
    i_n, i_tile = tl.program_id(0), tl.program_id(1)
    count = tl.load(tiles_ptr + 3 * i_tile + 2)
    if count == 0:
        return
    expert = tl.load(tiles_ptr + 3 * i_tile).to(tl.int64)
    first = tl.load(tiles_ptr + 3 * i_tile + 1)
    o_m = tl.arange(0, BM)
    m_m = o_m < count
    b_place = tl.load(order_ptr + first + o_m, mask=m_m, other=0)  # [BM] assignments
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < num_columns
    o_k = tl.arange(0, BK)
    b_rows = x_ptr + (b_place // REPEATS).to(tl.int64)[:, None] * stride_x + o_k[None, :]
    b_columns = weight_ptr + expert * stride_expert + o_n.to(tl.int64)[None, :] * K + o_k[:, None]
    b_acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        m_k = (k + o_k < K) | (K % BK == 0)
        b_x = tl.load(b_rows + k, mask=m_m[:, None] & m_k[None, :], other=0.0)  # [BM, BK]
        b_w = tl.load(b_columns + k, mask=m_n[None, :] & m_k[:, None], other=0.0)  # [BK, BN]
        if UPCAST:
            b_x = b_x.to(tl.float32)
        b_acc = tl.dot(b_x, b_w.to(b_x.dtype), b_acc, input_precision="ieee")
    if scales_ptr is not None:
        b_scale = tl.load(scales_ptr + expert * num_columns + o_n, mask=m_n, other=0.0)  # [BN]
        b_acc *= b_scale[None, :]
    if row_weights_ptr is not None:
        b_acc *= tl.load(row_weights_ptr + b_place, mask=m_m, other=0.0)[:, None]
    o_out = b_place.to(tl.int64)[:, None] * stride_out + o_n[None, :]
    tl.store(out_ptr + o_out, b_acc.to(out_ptr.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def expert_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    order: torch.Tensor,
    tiles: torch.Tensor,
    out: torch.Tensor,
    *,
    tile_rows: int,
    row_weights: torch.Tensor | None = None,
) -> None:
    """out[a] = w_a * s * (x[a // r] @ weight[e].T) for the assignments `a` of expert e, r = A / rows of x.

    x [rows, K] in bf16, fp16 or fp32; weight [E, N, K] contiguous in the same, or fp8 / int8 with scales s float32
    [E, N]; out [A, N] in x's dtype. A tile, int32 [*, 3], is an expert, a place in order int32 [A], and a number of
    places, at most `tile_rows`; 0 is none. row_weights w float32 [A], or all 1. Rows of out in no tile are left as
    they are. Sums are float32. Grid: (N / block_n, tiles). Raises ValueError for tensors that do not fit.
    """
    _check(x, weight, scales, order, tiles, out, row_weights)
    check("tile_rows", tile_rows, f"one of {TILE_ROWS}", ok=tile_rows in TILE_ROWS)
    columns, width = weight.shape[1:]
    if not len(tiles) or not columns:
        return
    cut = expert_tiles(arch_of(x.device), tile_rows, x.itemsize, weight.itemsize)
    with launch_guard():
        _expert_matmul_kernel[(triton.cdiv(columns, cut.block_n), len(tiles))](
            x,
            weight,
            scales,
            order,
            tiles,
            row_weights,
            out,
            x.stride(0),
            out.stride(0),
            columns * width,
            columns,
            K=width,
            REPEATS=len(out) // len(x),
            BM=tile_rows,
            BN=cut.block_n,
            BK=cut.block_k,
            UPCAST=INTERPRETED and x.dtype is torch.bfloat16,
            num_warps=cut.num_warps,
            num_stages=cut.num_stages,
        )


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    order: torch.Tensor,
    tiles: torch.Tensor,
    out: torch.Tensor,
    row_weights: torch.Tensor | None,
) -> None:
    check_tensor("x", x, FLOATS, (None, None), contiguous=False)
    device, accepted = x.device, (x.dtype, *_QUANTISED)
    check_tensor("weight", weight, accepted, (None, None, x.shape[1]), device)
    experts, columns, _ = weight.shape
    check("scales", scales is not None, f"{weight.dtype in _QUANTISED} for {weight.dtype} weights",
          ok=(scales is not None) == (weight.dtype in _QUANTISED))  # fmt: skip
    if scales is not None:
        check_tensor("scales", scales, torch.float32, (experts, columns), device)
    check_tensor("order", order, torch.int32, (None,), device)
    check_tensor("tiles", tiles, torch.int32, (None, 3), device)
    check_tensor("out", out, x.dtype, (len(order), columns), device, contiguous=False)
    whole = len(x) > 0 and len(out) % len(x) == 0
    check("rows of x", len(x), f"a divisor of out's rows, {len(out)}", ok=whole or not len(out))
    if row_weights is not None:
        check_tensor("row_weights", row_weights, torch.float32, (len(order),), device)
