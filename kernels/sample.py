"""A token for each row of logits: filters and Gumbel noise without a sort."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from ._checks import FLOATS, check, check_tensor
from ._launch import launch_guard
from ._sample_chunks import FIELDS, pick_kernel, stats_kernel
from ._sample_rows import bounds_kernel, choose_kernel
from .arch import Arch, arch_of
from .limits import MAX_VOCAB

_BINS = 512
"""Lines of 1/16 that a histogram tells apart: what is 32 nats below the maximum weighs nothing."""


def chunk_tokens(vocab: int) -> int:
    """Logits that one program holds in registers: enough programs for 64 rows, 64 chunks a row at most."""
    if vocab > 65536:
        return 8192
    return int(min(4096, max(256, triton.next_power_of_2(vocab))))


def pick_tile(chunk: int, arch: Arch) -> int:
    """Logits of a chunk that the second pass has in registers at a time.

    Eight a thread; on AMD two, where the masks of more would not fit its scalar registers.
    """
    return min(chunk, 1024 if arch.is_amd else 2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleWorkspace:
    """Memory of `sample` between its passes, for up to `max_rows` rows of `vocab` logits."""

    max_rows: int
    vocab: int
    chunk: int
    capacity: int
    """Tokens per row that may lie in the bins where thresholds are; rows with more are searched through whole."""
    stats: torch.Tensor
    histogram: torch.Tensor
    records: torch.Tensor
    offsets: torch.Tensor
    candidates: torch.Tensor
    picks: torch.Tensor

    @classmethod
    def allocate(
        cls,
        device: torch.device,
        max_rows: int,
        vocab: int,
        *,
        chunk: int | None = None,
        capacity: int = 8192,
    ) -> SampleWorkspace:
        """About 100 KiB a row at 152,000 logits, 64 of it for candidates.

        `chunk` is a power of two, None: `chunk_tokens`. Raises ValueError for what is out of range.
        """
        check("max_rows", max_rows, "1 or more", ok=max_rows >= 1)
        check("vocab", vocab, f"1 to {MAX_VOCAB}", ok=1 <= vocab <= MAX_VOCAB)
        check("capacity", capacity, "1 or more", ok=capacity >= 1)
        size = chunk_tokens(vocab) if chunk is None else chunk
        check("chunk", size, "a power of two from 16", ok=size >= 16 and size & (size - 1) == 0)
        chunks = -(-vocab // size)

        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        return cls(
            max_rows=max_rows,
            vocab=vocab,
            chunk=size,
            capacity=capacity,
            stats=empty(max_rows, chunks, 4),
            histogram=empty(max_rows, chunks, _BINS),
            records=empty(max_rows, FIELDS.value),
            offsets=empty(max_rows, chunks),
            candidates=empty(max_rows, capacity, dtype=torch.int64),
            picks=empty(max_rows, chunks, 4),
        )


def sample(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    draws: torch.Tensor,
    out_tokens: torch.Tensor,
    out_status: torch.Tensor,
    workspace: SampleWorkspace | None = None,
) -> None:
    """A token per row, and status 1 with token 0 for a row that holds NaN, plus infinity or nothing finite.

    logits [R, V] in fp32, bf16 or fp16; temperature, top_p and min_p float32 [R], top_k, draws and out_tokens int32
    [R], seeds int64 [R] (the bits of a uint64), out_status uint8 [R].

        token = argmax(logit / temperature + noise(seed, draw, token)) over what min_p, top_k and top_p keep

    as `reference.keep_mask` says; greedy below a temperature of 1e-5: the lowest id among the greatest. A token
    depends on its row alone. Four launches, of grids (R, V / chunk) and (R): maxima, and of rows with top_k or top_p
    sums and histograms in bins of 1/16 nat; the bins where thresholds lie; scores of what lies above those, and the
    tokens within them as candidates; thresholds among these. The logits are read twice, those of chunks below all
    thresholds once. Raises ValueError for tensors that do not fit.
    """
    rows, vocab = _check(logits, temperature, top_k, top_p, min_p, seeds, draws, out_tokens, out_status)
    if rows == 0:
        return
    w = SampleWorkspace.allocate(logits.device, rows, vocab) if workspace is None else workspace
    check("rows of logits", rows, f"up to the workspace's {w.max_rows}", ok=rows <= w.max_rows)
    check("columns of logits", vocab, f"the workspace's {w.vocab}", ok=vocab == w.vocab)
    check("workspace", w.stats.device, f"on {logits.device}", ok=w.stats.device == logits.device)
    with launch_guard():
        _launch(logits, (temperature, top_k, top_p), (min_p, seeds, draws), w, out_tokens, out_status)


def _launch(
    logits: torch.Tensor,
    filters: tuple[torch.Tensor, ...],
    draws: tuple[torch.Tensor, ...],
    w: SampleWorkspace,
    out_tokens: torch.Tensor,
    out_status: torch.Tensor,
) -> None:
    rows, vocab = logits.shape
    stride, arch = logits.stride(0), arch_of(logits.device)
    chunks = -(-vocab // w.chunk)
    chunks_p = int(triton.next_power_of_2(chunks))
    group, chunk_warps = min(8, chunks_p), min(8, max(1, w.chunk // 512))
    # Products are rounded before they are added: what is compared is the same in every pass.
    options = {"CHUNKS": chunks, "BINS": _BINS, "enable_fp_fusion": False}
    # Told nothing, ptxas keeps one value of a row in memory to have 40 registers instead of 64.
    row_options = options | {"CHUNKS_P": chunks_p} | ({} if arch.is_amd else {"maxnreg": 128})
    stats_kernel[(rows, chunks)](
        logits, *filters, w.stats, w.histogram, stride, vocab, CHUNK=w.chunk, num_warps=chunk_warps, **options
    )
    bounds_kernel[(rows,)](
        *filters, *draws, w.stats, w.histogram, w.records, w.offsets, out_tokens, out_status, vocab, w.capacity,
        CHUNK=w.chunk, GROUP=group, num_warps=group, **row_options,
    )  # fmt: skip
    pick_kernel[(rows, chunks)](
        logits, w.records, w.stats, w.offsets, w.candidates, w.picks, stride, vocab, w.capacity,
        CHUNK=w.chunk, TILE=pick_tile(w.chunk, arch), num_warps=chunk_warps, **options,
    )  # fmt: skip
    choose_kernel[(rows,)](
        logits, w.records, w.candidates, w.picks, out_tokens, stride, vocab, w.capacity,
        BLOCK=1024, num_warps=8, **row_options,
    )  # fmt: skip


def _check(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    draws: torch.Tensor,
    out_tokens: torch.Tensor,
    out_status: torch.Tensor,
) -> tuple[int, int]:
    check_tensor("logits", logits, FLOATS, (None, None), contiguous=False)
    rows, vocab = int(logits.shape[0]), int(logits.shape[1])
    columns = {
        "temperature": (temperature, torch.float32),
        "top_k": (top_k, torch.int32),
        "top_p": (top_p, torch.float32),
        "min_p": (min_p, torch.float32),
        "seeds": (seeds, torch.int64),
        "draws": (draws, torch.int32),
        "out_tokens": (out_tokens, torch.int32),
        "out_status": (out_status, torch.uint8),
    }
    for name, (column, dtype) in columns.items():
        check_tensor(name, column, dtype, (rows,), logits.device)
    return rows, vocab
