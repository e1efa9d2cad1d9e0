"""Merges the partial results of rows whose keys were split: exact for any number of parts.

    lse = ln sum_i exp(lse_i)        out = sum_i exp(lse_i - lse) acc_i

Names in kernels: `*_ptr` pointers, `i_*` program ids, `o_*` offsets, `m_*` masks, `b_*` tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._attend import LN_2, LOG2_E
from ._checks import FLOATS, check, check_tensor
from ._launch import launch_guard
from .arch import arch_of
from .attention_plan import AttentionPlan, DecodeWorkspace

# Elements of parts read at once: four loads of 128 bits by each of 128 threads, of 16 parts at head dim 128.
_ELEMENTS = 2048
_THREADS = 128


@triton.jit
def _combine_kernel(
    acc_ptr,
    partial_lse_ptr,
    row_items_ptr,
    query_start_ptr,
    out_ptr,
    lse_ptr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PARTS: tl.constexpr,
):
    i_head = tl.program_id(0)
    i_row = tl.program_id(1)
    num_heads = tl.num_programs(0)
    begin = tl.load(row_items_ptr + i_row)
    end = tl.load(row_items_ptr + i_row + 1)
    if end - begin > 1:  # one part is the result already
        o_d = tl.arange(0, DP)
        o_p = tl.arange(0, PARTS)
        m_d = o_d < D
        top = tl.full([], float("-inf"), tl.float32)
        total = tl.zeros([], tl.float32)
        b_acc = tl.zeros([DP], tl.float32)
        for first in range(begin, end, PARTS):
            m_p = first + o_p < end
            o_part = (first + o_p).to(tl.int64) * num_heads + i_head  # [PARTS]
            b_lse = tl.load(partial_lse_ptr + o_part, mask=m_p, other=float("-inf")) * LOG2_E
            b_part = tl.load(
                acc_ptr + o_part[:, None] * D + o_d[None, :], mask=m_p[:, None] & m_d[None, :], other=0.0
            )  # [PARTS, DP]
            new = tl.maximum(top, tl.max(b_lse, 0))
            base = tl.where(new == float("-inf"), 0.0, new)  # parts that saw no key weigh nothing
            b_weight = tl.exp2(b_lse - base)
            decay = tl.exp2(top - base)
            total = total * decay + tl.sum(b_weight, 0)
            b_acc = b_acc * decay + tl.sum(b_part * b_weight[:, None], 0)
            top = new
        whole = tl.where(total == 0.0, 1.0, total)
        o_out = tl.load(query_start_ptr + i_row).to(tl.int64) * num_heads + i_head
        tl.store(out_ptr + o_out * D + o_d, (b_acc / whole).to(out_ptr.dtype.element_ty), mask=m_d)
        if lse_ptr is not None:
            tl.store(lse_ptr + o_out, (top + tl.log2(whole)) * LN_2)


def combine_partials(
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    query_start: torch.Tensor,
    out: torch.Tensor,
    *,
    lse: torch.Tensor | None = None,
) -> None:
    """Writes the result of each row with two items or more to out[query_start[row]]; leaves all else as it is.

    query_start int32 [R + 1]; out [T, Hq, D] of any float dtype; lse float32 [T, Hq]. Parts with an lse of -inf
    weigh nothing; a row of none other gives 0 and -inf. Grid: (Hq, R) programs.
    """
    check_tensor("out", out, FLOATS, (None, None, None))
    tokens, heads, head_dim = out.shape
    check_tensor("query_start", query_start, torch.int32, (None,), out.device)
    check_tensor("plan.row_items", plan.row_items, torch.int32, (None,), out.device)
    check_workspace(workspace, plan.items.shape[0], heads, head_dim, out.device)
    if lse is not None:
        check_tensor("lse", lse, torch.float32, (tokens, heads), out.device)
    rows = query_start.shape[0] - 1
    most = plan.row_items.shape[0] - 1
    check("query_start", f"{rows} rows", f"of at most {most} rows", ok=0 <= rows <= most)
    if not rows or not heads:
        return
    padded = 1 << (head_dim - 1).bit_length()
    with launch_guard():
        _combine_kernel[(heads, rows)](
            workspace.acc,
            workspace.lse,
            plan.row_items,
            query_start,
            out,
            lse,
            D=head_dim,
            DP=padded,
            PARTS=max(1, _ELEMENTS // padded),
            num_warps=_THREADS // (64 if arch_of(out.device).is_amd else 32),
        )


def check_workspace(
    workspace: DecodeWorkspace, max_items: int, heads: int, head_dim: int, device: torch.device
) -> None:
    """Raises ValueError unless the workspace has room for this many items of these heads, on `device`."""
    check_tensor("workspace.acc", workspace.acc, torch.float32, (None, heads, head_dim), device)
    items = workspace.acc.shape[0]
    check_tensor("workspace.lse", workspace.lse, torch.float32, (items, heads), device)
    check("workspace", f"{items} items", f"room for the plan's {max_items} items", ok=items >= max_items)
