"""The least bytes and operations that each kernel must move and do, and the time which that takes at given rates.

Pure functions; lengths are in tokens, sizes in bytes, times in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SFU_PER_CYCLE = 16
"""Exponentials that one multiprocessor computes per cycle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the device does at best, as measured in the same run."""

    copy_gbs: float
    """Bytes read plus bytes written by a large copy, in 1e9 bytes per second."""
    read_gbs: float
    matmul_tflops: float
    """A large bf16 product of random matrices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a call must move and do at least."""

    nbytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(nbytes=self.nbytes + other.nbytes, flops=self.flops + other.flops)


def least_us(work: Work, ceilings: Ceilings) -> float:
    """The longer of moving the bytes at the copy's rate and doing the operations at the product's."""
    return max(work.nbytes / (ceilings.copy_gbs * 1e3), work.flops / (ceilings.matmul_tflops * 1e6))


def decode(
    seq_lens: Sequence[int],
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int,
    items: int = 0,
    scale_bytes: int = 0,
) -> Work:
    """One query per row: keys and values once, `items` partial results written and read, queries and outputs.

    `scale_bytes` are those of one stored row of head_dim elements.
    """
    keys = sum(seq_lens)
    group = q_heads // kv_heads
    nbytes = keys * kv_heads * 2 * (head_dim * itemsize + scale_bytes)
    nbytes += items * kv_heads * group * (head_dim + 1) * 8 + len(seq_lens) * q_heads * head_dim * 4
    return Work(nbytes=nbytes, flops=4.0 * keys * q_heads * head_dim)


def prefill(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int = 2,
    causal: bool = True,
) -> Work:
    """Chunks of prompts: query i of a row sees its context and itself; all keys where not causal."""
    pairs = 0.0
    for queries, keys in zip(query_lens, seq_lens, strict=True):
        pairs += queries * (keys - queries) + queries * (queries + 1) / 2 if causal else queries * keys
    nbytes = sum(seq_lens) * kv_heads * 2 * head_dim * itemsize
    nbytes += 2 * sum(query_lens) * q_heads * head_dim * itemsize
    return Work(nbytes=float(nbytes), flops=4.0 * q_heads * head_dim * pairs)


def softmax_cap_tflops(head_dim: int, *, matmul_tflops: float, num_sms: int, ghz: float) -> float:
    """What attention reaches where exponentials and products do not overlap, in TFLOP/s."""
    exponentials = SFU_PER_CYCLE * num_sms * ghz * 1e9
    seconds_per_flop = 1 / (matmul_tflops * 1e12) + 1 / (4 * head_dim * exponentials)
    return 1e-12 / seconds_per_flop


def l2_cap_tflops(tile_rows: int, *, l2_tbs: float) -> float:
    """What attention reaches where every byte of a key tile comes from L2: each feeds `tile_rows` operations."""
    return tile_rows * l2_tbs


def qkv_post(tokens: int, *, q_heads: int, kv_heads: int, head_dim: int, itemsize: int, kv_row: int) -> Work:
    """Queries, keys and values read; queries written, keys and values written as rows of `kv_row` bytes."""
    read = tokens * (q_heads + 2 * kv_heads) * head_dim * itemsize
    return Work(nbytes=float(read + tokens * (q_heads * head_dim * itemsize + 2 * kv_heads * kv_row)))


def add_rms_norm(tokens: int, hidden: int, *, itemsize: int) -> Work:
    """x and residual read, residual and the normalised row written."""
    return Work(nbytes=4.0 * tokens * hidden * itemsize)


def glu(tokens: int, inner: int, *, itemsize: int) -> Work:
    """Gate and up read, their product written."""
    return Work(nbytes=3.0 * tokens * inner * itemsize)


def sample(rows: int, vocab: int, *, itemsize: int = 4) -> Work:
    """One pass over the logits."""
    return Work(nbytes=float(rows * vocab * itemsize))


def copy(nbytes: int) -> Work:
    """Read and written once."""
    return Work(nbytes=2.0 * nbytes)


def offload_us(pieces: int, piece_bytes: int, *, link_gbs: float, per_copy_us: float = 2.0) -> float:
    """Moving blocks over a link in copies of `piece_bytes`."""
    return pieces * (piece_bytes / (link_gbs * 1e3) + per_copy_us)


def engine_step(
    *, weight_bytes: float, parameters: float, seq_lens: Sequence[int], kv_bytes_per_token: float
) -> Work:
    """One decoded token per row: all weights once, all keys and values once."""
    return Work(
        nbytes=weight_bytes + sum(seq_lens) * kv_bytes_per_token, flops=2.0 * parameters * len(seq_lens)
    )
