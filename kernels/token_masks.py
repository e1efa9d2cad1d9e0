"""Tokens that a form of text does not allow."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._checks import FLOATS, check_tensor
from ._convert import rounded
from ._launch import INTERPRETED, launch_guard

_BLOCK = 1024
_BITS = 32


@triton.jit
def _mask_kernel(
    logits_ptr, rows_ptr, masks_ptr, stride_row: tl.int64, stride_mask: tl.int64, vocab,
    BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i_entry = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + i_entry).to(tl.int64)
    if row >= 0:
        o_tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = o_tokens < vocab
        b_words = tl.load(masks_ptr + i_entry * stride_mask + (o_tokens >> 5), mask=mask, other=-1)  # [BLOCK]
        banned = mask & (((b_words >> (o_tokens & 31)) & 1) == 0)
        at = logits_ptr + row * stride_row + o_tokens
        b_x = tl.load(at, mask=banned, other=0.0).to(tl.float32)
        tl.store(at, rounded(b_x + float("-inf"), logits_ptr.dtype.element_ty, UPCAST), mask=banned)


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
    """Adds minus infinity, in place, to the logits [R, V] of tokens that masks have no bit of.

    Line i of masks, int32 [n, ceil(V / 32)], is of row rows[i], int32 [n], -1: none; rows are distinct. Bit t % 32 of
    word t / 32 is token t's. What is not a number stays so. Grid: (n, V / 1024). Raises ValueError for tensors that do
    not fit.
    """
    check_tensor("logits", logits, FLOATS, (None, None), contiguous=False)
    vocab, device = int(logits.shape[1]), logits.device
    check_tensor("rows", rows, torch.int32, (None,), device)
    check_tensor("masks", masks, torch.int32, (int(rows.shape[0]), -(-vocab // _BITS)), device)
    if rows.shape[0] == 0:
        return
    with launch_guard():
        _mask_kernel[(rows.shape[0], -(-vocab // _BLOCK))](
            logits, rows, masks, logits.stride(0), masks.stride(0), vocab,
            BLOCK=_BLOCK, UPCAST=INTERPRETED, num_warps=4,
        )  # fmt: skip
