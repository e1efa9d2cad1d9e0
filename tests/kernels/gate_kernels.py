"""Kernels that the compile gate is tested on: one good one, and one for each thing that it must refuse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from airi.kernels._variants import Expects, Variant, variants_of


@triton.jit
def good_prefill(
    q_ptr,
    arena_ptr,
    table_ptr,
    out_ptr,
    num_keys,
    num_query_rows,
    stride_entry: tl.int64,
    scale_log2e,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Attention of a tile of ROWS queries over the blocks of one sequence, keys and values read by pointer."""
    i_tile = tl.program_id(0)
    o_m = i_tile * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, D)
    o_t = tl.arange(0, BLOCK)
    b_q = tl.load(q_ptr + o_m[:, None] * D + o_d[None, :], mask=o_m[:, None] < num_query_rows, other=0.0)
    b_acc = tl.zeros([ROWS, D], tl.float32)
    b_max = tl.full([ROWS], -1e30, tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    for i_key in tl.range(0, num_keys, BLOCK):
        entry = tl.load(table_ptr + i_key // BLOCK).to(tl.int64) * stride_entry
        k_ptr = arena_ptr + entry + o_t[:, None] * D + o_d[None, :]
        m_key = (i_key + o_t) < num_keys
        b_k = tl.load(k_ptr, mask=m_key[:, None], other=0.0)  # [BLOCK, D]
        b_v = tl.load(k_ptr + BLOCK * D, mask=m_key[:, None], other=0.0)  # [BLOCK, D]
        b_s = tl.where(m_key[None, :], tl.dot(b_q, b_k.T) * scale_log2e, -1e30)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_alpha = tl.exp2(b_max - b_new)
        b_p = tl.exp2(b_s - b_new[:, None])
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None])
        b_max = b_new
    b_out = b_acc / b_sum[:, None]
    tl.store(
        out_ptr + o_m[:, None] * D + o_d[None, :],
        b_out.to(out_ptr.dtype.element_ty),
        mask=o_m[:, None] < num_query_rows,
    )


@triton.jit
def warp_specialised_prefill(
    q_ptr,
    kv_desc,
    table_ptr,
    seq_ptr,
    start_ptr,
    out_ptr,
    tiles_ptr,
    row0,
    rows_per_block,
    table_stride: tl.int64,
    q_rows,
    scale_log2e,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The same over tensor descriptors, split by the compiler into warps that load and warps that multiply."""
    G: tl.constexpr = HQ // HKV
    BQ: tl.constexpr = ROWS // G
    i_w = tl.program_id(0)
    i_h = tl.program_id(1)
    i_seq = tl.load(tiles_ptr + 2 * i_w)
    i_tile = tl.load(tiles_ptr + 2 * i_w + 1)
    first = tl.load(start_ptr + i_seq)
    num_queries = tl.load(start_ptr + i_seq + 1) - first
    num_keys = tl.load(seq_ptr + i_seq)
    context = num_keys - num_queries
    o_m = tl.arange(0, ROWS)
    o_d = tl.arange(0, D)
    o_t = tl.arange(0, TILE)
    o_q = i_tile * BQ + o_m // G
    q_desc = tl.make_tensor_descriptor(q_ptr, shape=(q_rows, D), strides=(D, 1), block_shape=(ROWS, D))
    b_q = q_desc.load([i_h * (q_rows // HKV) + (first + i_tile * BQ) * G, 0])
    b_acc = tl.zeros([ROWS, D], tl.float32)
    b_max = tl.full([ROWS], -1e30, tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    end = tl.minimum(context + (i_tile + 1) * BQ, num_keys)
    for i_key in tl.range(0, end, TILE, warp_specialize=True):
        entry = tl.load(table_ptr + i_seq * table_stride + i_key // BLOCK)
        row = entry * rows_per_block + row0 + i_h * 2 * BLOCK + i_key % BLOCK
        b_k = kv_desc.load([row, 0])  # [TILE, D]
        b_s = tl.dot(b_q, b_k.T) * scale_log2e
        b_s = tl.where((i_key + o_t)[None, :] <= (context + o_q)[:, None], b_s, -1e30)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_alpha = tl.exp2(b_max - b_new)
        b_p = tl.exp2(b_s - b_new[:, None])
        b_v = kv_desc.load([row + BLOCK, 0])  # [TILE, D]
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None])
        b_max = b_new
    b_acc = b_acc / b_sum[:, None]
    o_out = (first + o_q).to(tl.int64) * (HQ * D) + (i_h * G + o_m % G) * D
    m_out = o_q < num_queries
    tl.store(out_ptr + o_out[:, None] + o_d[None, :], b_acc.to(out_ptr.dtype.element_ty), mask=m_out[:, None])


@triton.jit
def refused_by_the_compiler(x_ptr, N: tl.constexpr):
    tl.static_assert(N > 1000, "N is too small")
    tl.store(x_ptr, N)


@triton.jit
def byte_reader(codes_ptr, q_ptr, out_ptr, BLOCK: tl.constexpr, D: tl.constexpr):
    """8-bit values multiplied against the order in which they lie: each byte is fetched from shared memory alone."""
    o_t = tl.arange(0, BLOCK)
    o_d = tl.arange(0, D)
    b_p = tl.load(q_ptr + tl.arange(0, 16)[:, None] * BLOCK + o_t[None, :])  # [16, BLOCK]
    b_acc = tl.zeros([16, D], tl.float32)
    for _ in tl.range(0, 64):
        b_v = tl.load(codes_ptr + o_t[:, None] * D + o_d[None, :])  # [BLOCK, D]
        b_acc = tl.dot(b_p, b_v.to(tl.float16), b_acc)
        codes_ptr += BLOCK * D
    tl.store(out_ptr + tl.arange(0, 16)[:, None] * D + o_d[None, :], b_acc)


class Dies:
    """Stands for a variant whose compiler ends the process, as warp specialisation against its rules does."""

    name = "dies"
    expects = Expects()

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def compile(self) -> None:
        os.abort()


def meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def attention(
    head_dim: int, *, rows: int = 128, stride: int = 1 << 13, warps: int = 8, stages: int = 2
) -> None:
    """`stride`: elements from block to block; one that is odd leaves keys and values unaligned."""
    q = meta(torch.bfloat16, 1 << 20)
    table = meta(torch.int32, 1024)
    sizes = {"D": head_dim, "BLOCK": 64, "ROWS": rows, "num_warps": warps, "num_stages": stages}
    good_prefill[(1,)](q, meta(torch.bfloat16, 1 << 32), table, q, 1000, 4000, stride, 1.5, **sizes)


def specialised() -> None:
    arena = TensorDescriptor.from_tensor(meta(torch.bfloat16, 1 << 26, 128), [128, 128])
    q = meta(torch.bfloat16, 1 << 20)
    one = meta(torch.int32, 1024)
    sizes = {
        "HQ": 32,
        "HKV": 8,
        "D": 128,
        "BLOCK": 128,
        "ROWS": 128,
        "TILE": 128,
        "num_warps": 4,
        "num_stages": 2,
    }
    warp_specialised_prefill[(1,)](q, arena, one, one, one, q, one, 1000, 4096, 1024, 4000, 1.5, **sizes)


def byte_reads() -> None:
    codes = meta(torch.float8_e5m2, 1 << 20)
    byte_reader[(1,)](codes, meta(torch.float16, 1 << 10), meta(torch.float32, 1 << 10), BLOCK=64, D=64)


PREFILL = Expects(tensor_cores=True, wgmma=True, wide_loads=True)
CASES: dict[str, tuple[Callable[[], object], Expects]] = {
    "good": (lambda: attention(128), PREFILL),
    "specialised": (specialised, PREFILL),
    "spills": (lambda: attention(256, warps=4), PREFILL),
    "narrow": (lambda: attention(64, stride=8193), PREFILL),
    "large": (lambda: attention(256, stages=5), PREFILL),
    "few_rows": (lambda: attention(64, rows=16, warps=4), PREFILL),
    "bytes": (byte_reads, Expects(no_byte_reads=True)),
    "refused": (lambda: refused_by_the_compiler[(1,)](meta(torch.int32, 16), N=16), Expects()),
}


def variants(arch: str) -> Iterator[Variant | Dies]:
    for name, (launch, expects) in CASES.items():
        if name != "specialised" or arch == "sm_90":
            yield from variants_of(arch, name, launch, expects)
    yield Dies(arch)
