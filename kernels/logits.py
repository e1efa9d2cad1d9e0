"""What is done to logits before a token is sampled, and what is asked of them after."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._checks import FLOATS, check, check_tensor
from ._convert import rounded
from ._launch import INTERPRETED, launch_guard
from .token_counts import IN_PROMPT, ONE_OUTPUT

_BLOCK = 1024
_CHUNK = 4096
MAX_TOP = 64
"""Alternatives that `gather_logprobs` finds."""
_NO_TOKEN = tl.constexpr(2147483647)
_LEAST = tl.constexpr(-(2**63))
_OUTPUT_SHIFT = tl.constexpr(ONE_OUTPUT.bit_length() - 1)


@triton.jit
def _penalise_kernel(
    logits_ptr, rows_ptr, lines_ptr, seen_ptr, repetition_ptr, presence_ptr, frequency_ptr, stride_row: tl.int64,
    stride_seen: tl.int64, vocab, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i_entry = tl.program_id(0)
    row, line = tl.load(rows_ptr + i_entry).to(tl.int64), tl.load(lines_ptr + i_entry).to(tl.int64)
    if (row >= 0) & (line >= 0):
        o_tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = o_tokens < vocab
        b_seen = tl.load(seen_ptr + line * stride_seen + o_tokens, mask=mask, other=0)  # [BLOCK]
        if tl.max(b_seen, 0) > 0:
            at = logits_ptr + row * stride_row + o_tokens
            b_stored = tl.load(at, mask=mask, other=0.0)
            b_x = b_stored.to(tl.float32)
            repetition = tl.load(repetition_ptr + i_entry)
            b_x = tl.where(b_x > 0, tl.math.div_rn(b_x, repetition + tl.zeros_like(b_x)), b_x * repetition)
            b_count = b_seen >> _OUTPUT_SHIFT
            b_loss = tl.load(frequency_ptr + i_entry) * b_count.to(tl.float32) + tl.load(
                presence_ptr + i_entry
            )
            b_x = tl.where(b_count > 0, b_x - b_loss, b_x)
            b_x = rounded(b_x, logits_ptr.dtype.element_ty, UPCAST)
            tl.store(at, tl.where(b_seen > 0, b_x, b_stored), mask=mask)


def penalise(
    logits: torch.Tensor,
    rows: torch.Tensor,
    lines: torch.Tensor,
    seen: torch.Tensor,
    *,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """Penalises rows of logits [R, V], in place, for the tokens that lines of `seen` say were there before.

    Entry i of rows and lines, int32 [n], -1: none, goes by repetition, presence and frequency [i], float32 [n]; rows
    are distinct. seen int32 [P, V]: `IN_PROMPT`, plus `ONE_OUTPUT` for each time that the token was generated.

        x = x / repetition where x > 0, else x * repetition; if generated: x -= frequency * count + presence

    Grid: (n, V / 1024). Raises ValueError for tensors that do not fit.
    """
    check_tensor("logits", logits, FLOATS, (None, None), contiguous=False)
    vocab, device = int(logits.shape[1]), logits.device
    check_tensor("rows", rows, torch.int32, (None,), device)
    check_tensor("lines", lines, torch.int32, rows.shape, device)
    check_tensor("seen", seen, torch.int32, (None, vocab), device, contiguous=False)
    for name, column in (("repetition", repetition), ("presence", presence), ("frequency", frequency)):
        check_tensor(name, column, torch.float32, rows.shape, device)
    if rows.shape[0] == 0:
        return
    with launch_guard():
        _penalise_kernel[(rows.shape[0], -(-vocab // _BLOCK))](
            logits, rows, lines, seen, repetition, presence, frequency, logits.stride(0), seen.stride(0), vocab,
            BLOCK=_BLOCK, UPCAST=INTERPRETED, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count", "vocab"])
def _count_kernel(
    seen_ptr, lines_ptr, tokens_ptr, line: tl.int64, count, vocab, stride_seen: tl.int64, ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o_at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = o_at < count
    b_tokens = tl.load(tokens_ptr + o_at, mask=mask, other=-1)
    b_lines = tl.zeros([BLOCK], tl.int64) + line
    if lines_ptr is not None:
        b_lines = tl.load(lines_ptr + o_at, mask=mask, other=-1).to(tl.int64)
    mask = mask & (b_tokens >= 0) & (b_tokens < vocab) & (b_lines >= 0)
    at = seen_ptr + b_lines * stride_seen + b_tokens
    if ADD > 1:
        tl.atomic_add(at, ADD, mask=mask, sem="relaxed")
    else:
        tl.atomic_or(at, ADD, mask=mask, sem="relaxed")


def _count(seen: torch.Tensor, lines: torch.Tensor | None, tokens: torch.Tensor, line: int, add: int) -> None:
    count = int(tokens.shape[0])
    if count == 0:
        return
    with launch_guard():
        _count_kernel[(-(-count // 256),)](
            seen,
            lines,
            tokens,
            line,
            count,
            int(seen.shape[1]),
            seen.stride(0),
            ADD=add,
            BLOCK=256,
            num_warps=4,
        )


def start_counts(seen: torch.Tensor, line: int, prompt: torch.Tensor, output: torch.Tensor) -> None:
    """Makes a line of seen [P, V] that of a request: its prompt, and what it generated before it was preempted.

    prompt and output are int32 vectors; ids outside of the vocabulary are passed over.
    """
    check_tensor("seen", seen, torch.int32, (None, None), contiguous=False)
    check("line", line, f"0 to {seen.shape[0] - 1}", ok=0 <= line < seen.shape[0])
    check_tensor("prompt", prompt, torch.int32, (None,), seen.device)
    check_tensor("output", output, torch.int32, (None,), seen.device)
    seen[line].zero_()
    _count(seen, None, prompt, line, IN_PROMPT)
    _count(seen, None, output, line, ONE_OUTPUT)


def count_tokens(seen: torch.Tensor, lines: torch.Tensor, tokens: torch.Tensor) -> None:
    """Counts one more generated token of each line: seen[lines[i], tokens[i]], both int32 [n]; line -1: none."""
    check_tensor("seen", seen, torch.int32, (None, None), contiguous=False)
    check_tensor("lines", lines, torch.int32, (None,), seen.device)
    check_tensor("tokens", tokens, torch.int32, lines.shape, seen.device)
    _count(seen, lines, tokens, 0, ONE_OUTPUT)


@triton.jit(do_not_specialize=["count", "rows", "vocab"])
def _edit_kernel(
    logits_ptr, rows_ptr, tokens_ptr, values_ptr, count, rows, vocab, stride_row: tl.int64,
    BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    o_at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = o_at < count
    b_rows = tl.load(rows_ptr + o_at, mask=mask, other=-1)
    b_tokens = tl.load(tokens_ptr + o_at, mask=mask, other=-1)
    mask = mask & (b_rows >= 0) & (b_rows < rows) & (b_tokens >= 0) & (b_tokens < vocab)
    at = logits_ptr + b_rows.to(tl.int64) * stride_row + b_tokens
    b_x = tl.load(values_ptr + o_at, mask=mask, other=0.0)
    b_old = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, rounded(b_old + b_x, logits_ptr.dtype.element_ty, UPCAST), mask=mask)


def edit_logits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """logits[rows[i], tokens[i]] += values[i]; minus infinity bans a token.

    logits [R, V] in fp32, bf16 or fp16; rows (-1: none) and tokens int32 [n], each pair once; values float32 [n]. What
    lies outside of the logits is passed over. Raises ValueError for tensors that do not fit.
    """
    check_tensor("logits", logits, FLOATS, (None, None), contiguous=False)
    check_tensor("rows", rows, torch.int32, (None,), logits.device)
    check_tensor("tokens", tokens, torch.int32, rows.shape, logits.device)
    check_tensor("values", values, torch.float32, rows.shape, logits.device)
    count = int(rows.shape[0])
    if count == 0:
        return
    with launch_guard():
        _edit_kernel[(-(-count // 128),)](
            logits, rows, tokens, values, count, int(logits.shape[0]), int(logits.shape[1]), logits.stride(0),
            BLOCK=128, UPCAST=INTERPRETED, num_warps=4,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def _chunk_logprobs_kernel(
    logits_ptr, tokens_ptr, stats_ptr, tops_ptr, stride_row: tl.int64, vocab, count,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """stats [R, CHUNKS, 4] = a chunk's maximum (infinite: it holds NaN), sum of exponentials, logits above the token's;
    tops [R, CHUNKS, WIDTH] = its greatest logits as integers in their order, over what is left to the last token."""
    i_row, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = i_row * CHUNKS + i_chunk
    o_tokens = i_chunk * CHUNK + tl.arange(0, CHUNK)
    mask = o_tokens < vocab
    row_ptr = logits_ptr + i_row * stride_row
    b_x = tl.load(row_ptr + o_tokens, mask=mask, other=float("-inf")).to(tl.float32)  # [CHUNK]
    token = tl.load(tokens_ptr + i_row)
    inside = (token >= 0) & (token < vocab)
    value = tl.load(row_ptr + token, mask=inside, other=float("nan")).to(tl.float32)
    nan = tl.max((b_x != b_x).to(tl.int32), 0)
    b_x = tl.where(b_x == b_x, b_x, float("-inf"))
    top = tl.max(b_x, 0)
    total = 0.0
    if tl.abs(top) < float("inf"):
        total = tl.sum(tl.exp(b_x - top), 0)
    tl.store(stats_ptr + at * 4, tl.where(nan != 0, float("inf"), top))
    tl.store(stats_ptr + at * 4 + 1, total)
    tl.store(stats_ptr + at * 4 + 2, tl.sum((b_x > value).to(tl.float32), 0))
    b_bits = tl.where(b_x == 0, 0.0, b_x).to(tl.int32, bitcast=True)
    b_keys = (b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32
    b_keys = tl.where(mask, b_keys | (0 - o_tokens + _NO_TOKEN).to(tl.int64), _LEAST)
    for i in range(count):
        greatest = tl.max(b_keys, 0)
        tl.store(tops_ptr + at * WIDTH + i, greatest)
        b_keys = tl.where(b_keys == greatest, _LEAST, b_keys)


@triton.jit(do_not_specialize=["count"])
def _row_logprobs_kernel(
    logits_ptr, tokens_ptr, stats_ptr, tops_ptr, logprobs_ptr, ranks_ptr, top_ids_ptr, top_logprobs_ptr,
    stride_row: tl.int64, vocab, count, CHUNKS: tl.constexpr, CHUNKS_P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i_row = tl.program_id(0).to(tl.int64)
    o_chunks = tl.arange(0, CHUNKS_P)
    m_chunks = o_chunks < CHUNKS
    stats = stats_ptr + (i_row * CHUNKS + o_chunks) * 4
    b_max = tl.load(stats, mask=m_chunks, other=float("-inf"))  # [CHUNKS_P]
    top = tl.max(b_max, 0)
    broken = tl.abs(top) == float("inf")
    top = tl.where(broken, 0.0, top)
    b_sums = tl.load(stats + 1, mask=m_chunks, other=0.0)
    total = tl.sum(b_sums * tl.exp(tl.minimum(b_max - top, 0.0)), 0)
    log_sum = tl.where(broken, float("nan"), top + tl.log(tl.where(broken, 1.0, total)))
    token = tl.load(tokens_ptr + i_row)
    inside = (token >= 0) & (token < vocab)
    value = tl.load(logits_ptr + i_row * stride_row + token, mask=inside, other=float("nan")).to(tl.float32)
    tl.store(logprobs_ptr + i_row, value - log_sum)
    above = tl.sum(tl.load(stats + 2, mask=m_chunks, other=0.0), 0)
    tl.store(ranks_ptr + i_row, 1 + above.to(tl.int32))
    o_width = tl.arange(0, WIDTH)
    m_tops = m_chunks[:, None] & (o_width < count)[None, :]
    at = (i_row * CHUNKS + o_chunks) * WIDTH
    b_keys = tl.load(
        tops_ptr + at[:, None] + o_width[None, :], mask=m_tops, other=_LEAST
    )  # [CHUNKS_P, WIDTH]
    for i in range(count):
        greatest = tl.max(tl.max(b_keys, 1), 0)
        key = (greatest >> 32).to(tl.int32)
        logit = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        tl.store(top_ids_ptr + i_row * count + i, tl.where(broken, 0, 0 - greatest.to(tl.int32) + _NO_TOKEN))
        tl.store(top_logprobs_ptr + i_row * count + i, logit - log_sum)
        b_keys = tl.where(b_keys == greatest, _LEAST, b_keys)


class Logprobs(NamedTuple):
    """Log-probabilities under softmax(logits) of R rows."""

    logprobs: torch.Tensor
    """float32 [R], of one token each; NaN for rows that hold NaN, plus infinity or nothing finite"""
    ranks: torch.Tensor
    """int32 [R], 1 + how many logits are greater"""
    top_ids: torch.Tensor
    """int32 [R, count], most probable first, equal ones by ascending id"""
    top_logprobs: torch.Tensor
    """float32 [R, count]"""


def gather_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, count: int, out: Logprobs | None = None
) -> Logprobs:
    """Log-probability and rank of tokens [R] int32 under logits [R, V], and the `count` (up to 64) greatest of each.

    logits in fp32, bf16 or fp16; a token outside of the vocabulary has the log-probability NaN. Two launches, of grids
    (R, V / 4096) and (R): the logits are read once, the greatest of a row are those of its chunks' greatest. Allocates
    scratch of 48 to 144 KiB a row at 152,000 logits. Raises ValueError for tensors that do not fit.
    """
    check_tensor("logits", logits, FLOATS, (None, None), contiguous=False)
    rows, vocab = int(logits.shape[0]), int(logits.shape[1])
    device = logits.device
    check_tensor("tokens", tokens, torch.int32, (rows,), device)
    check("count", count, f"0 to {min(MAX_TOP, vocab)}", ok=0 <= count <= min(MAX_TOP, vocab))
    if out is None:
        out = Logprobs(
            torch.empty(rows, dtype=torch.float32, device=device),
            torch.empty(rows, dtype=torch.int32, device=device),
            torch.empty(rows, count, dtype=torch.int32, device=device),
            torch.empty(rows, count, dtype=torch.float32, device=device),
        )
    for name, dtype, shape in (
        ("logprobs", torch.float32, (rows,)),
        ("ranks", torch.int32, (rows,)),
        ("top_ids", torch.int32, (rows, count)),
        ("top_logprobs", torch.float32, (rows, count)),
    ):
        check_tensor(f"out.{name}", getattr(out, name), dtype, shape, device)
    if rows == 0:
        return out
    chunks, width = -(-vocab // _CHUNK), 16 if count <= 16 else MAX_TOP
    stats = torch.empty(rows, chunks, 4, dtype=torch.float32, device=device)
    tops = torch.empty(rows, chunks, width, dtype=torch.int64, device=device)
    shape_of = {"CHUNKS": chunks, "WIDTH": width}
    with launch_guard():
        _chunk_logprobs_kernel[(rows, chunks)](
            logits, tokens, stats, tops, logits.stride(0), vocab, count, CHUNK=_CHUNK, num_warps=8, **shape_of
        )
        _row_logprobs_kernel[(rows,)](
            logits, tokens, stats, tops, *out, logits.stride(0), vocab, count,
            CHUNKS_P=triton.next_power_of_2(chunks), num_warps=4, **shape_of,
        )  # fmt: skip
    return out
