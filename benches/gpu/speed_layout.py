"""What the device does at best, and whether blocks that hold all layers cost bandwidth.

A step reads, per layer, one run of a block for every block of every sequence. In layer-major order the runs of a layer
lie side by side, in block-major order a block's size apart, each on pages of its own. This reads runs of three sizes at
both distances, and at one that is no power of two, over small and large memory; blocks come in random order.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from airi.kernels._launch import launch_guard
from benches.gpu.bench import Bench, Case, Row, Wrong, timed_row
from benches.gpu.roofline import Work
from benches.gpu.timing import Call, time_calls, time_in_turns

_LAYER_BYTES = 256 << 10
"""Of one block and one layer: 64 tokens, 8 heads of 128, 16 bits."""
_LAYERS = 32
_STRIDES = {
    "layer-major": _LAYER_BYTES,
    "block-major": 8 << 20,
    "block-major + 32 KB": (8 << 20) + (32 << 10),
}
_RUNS = (16 << 10, 32 << 10, 256 << 10)
_SPANS_GB = (4, 32, 100)
PIECE = 16 << 10
"""Bytes that a program reads at a time."""
_COPY_BYTES = 4_294_967_296
_MATMUL = 8192
LIMIT = 0.97
"""Of layer-major's bandwidth, from which on block-major is the order to have."""


def cases(bench: Bench) -> list[Case]:
    found = [Case(name="ceilings", run=ceilings, seconds=10)]
    if bench.toy:
        return [*found, Case(name="layout probe toy", run=functools.partial(_probe, span=2 << 20), seconds=5)]
    return [
        *found,
        *[
            Case(name=f"layout probe {gb} GB", run=functools.partial(_probe, span=gb * 10**9), seconds=15)
            for gb in _SPANS_GB
        ],
    ]


@triton.jit  # type: ignore[untyped-decorator]
def _read_runs_kernel(arena_ptr, start_ptr, out_ptr, PIECES: tl.constexpr, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Adds up the words of one run, so that no load can be left out. Grid: (runs,)."""
    i_run = tl.program_id(0)
    o_word = tl.arange(0, WORDS)
    start = tl.load(start_ptr + i_run).to(tl.int64) * WORDS  # a multiple, so that loads are of 128 bits
    b_sum = tl.zeros([WORDS], tl.int32)
    for i_piece in tl.range(0, PIECES, num_stages=4):
        b_sum += tl.load(arena_ptr + start + i_piece * WORDS + o_word)
    tl.store(out_ptr + i_run, tl.sum(b_sum.to(tl.int64), 0))


def read_runs(arena: torch.Tensor, starts: torch.Tensor, run: int, out: torch.Tensor) -> None:
    """Reads `run` bytes from every start; starts int32 in pieces of 16 KB, out int64 [runs] their sums."""
    with launch_guard():
        _read_runs_kernel[(starts.numel(),)](
            arena.view(torch.int32), starts, out, PIECES=run // PIECE, WORDS=PIECE // 4, num_warps=4
        )


def starts_of(span: int, stride: int, run: int, *, seed: int) -> torch.Tensor:
    """Where runs start, in pieces of 16 KB: layer after layer, in each the blocks in random order.

    Every order covers the same blocks and layers of `span` bytes; a run of more than 32 KB is read in pieces of that,
    by neighbouring programs, as a block's heads are.
    """
    draw = torch.Generator().manual_seed(seed)
    block_bytes = max(_LAYERS * _LAYER_BYTES, stride)
    blocks = span // block_bytes
    found = []
    order = torch.randperm(blocks, generator=draw)
    for layer in range(_LAYERS):
        place = layer * blocks * stride if stride == _LAYER_BYTES else layer * _LAYER_BYTES
        found.append(order * stride + place)
    pieces = torch.arange(max(1, run // (32 << 10))) * min(run, 32 << 10)
    return ((torch.cat(found)[:, None] + pieces).view(-1) // PIECE).int()


def ceilings(bench: Bench) -> list[Row]:
    """Copy, read-only and matmul rates, of which all other rows are fractions."""
    arena = bench.arena()
    arena.view(torch.int32)[: arena.numel() // 4].random_()
    half = min(_COPY_BYTES, arena.numel() // 2)
    source, target = arena[:half], arena[half : 2 * half]
    copy = time_calls([lambda: target.copy_(source)])
    if not torch.equal(source, target):
        raise Wrong("a copy differs from its source")
    size = 64 if bench.toy else _MATMUL
    dtype = torch.float32 if bench.toy else torch.bfloat16
    a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    matmul = time_calls([lambda: torch.mm(a, b, out=product)] * 4)
    run = 32 << 10
    starts = torch.arange(half // run, dtype=torch.int32, device=bench.device) * (run // PIECE)
    out = torch.empty(starts.numel(), dtype=torch.int64, device=bench.device)
    read = time_calls([lambda: read_runs(arena, starts, run, out)])
    _check_sums(arena, starts, run, out)
    flops = 2.0 * size**3
    row = timed_row("copy", copy, Work(nbytes=2.0 * half))
    row |= {
        "copy_gbs": round(2e-3 * half / copy.p50, 1),
        "read_gbs": round(1e-3 * half / read.p50, 1),
        "matmul_tflops": round(flops * 1e-6 / matmul.p50, 1),
    }
    return [
        row,
        timed_row("read only", read, Work(nbytes=float(half))),
        timed_row(f"bf16 product {size}", matmul, Work(flops=flops)),
    ]


def _check_sums(arena: torch.Tensor, starts: torch.Tensor, run: int, out: torch.Tensor) -> None:
    words = arena.view(torch.int32)
    for i in (0, starts.numel() // 2, starts.numel() - 1):
        begin = int(starts[i]) * (PIECE // 4)
        total = int(words[begin : begin + run // 4].long().sum())
        if (total - int(out[i])) % 2**32:
            raise Wrong(f"the sum of run {i} is wrong")


def _probe(bench: Bench, *, span: int) -> list[Row]:
    arena = bench.arena()
    span = min(span, arena.numel())
    if bench.toy:
        span = arena.numel()
    rows = []
    worst = 1.0
    for run in _RUNS[:1] if bench.toy else _RUNS:
        found = _rates(bench, arena, span, run)
        base = _gbs(found["layer-major"])
        for name, row in found.items():
            row["over_layer_major"] = round(_gbs(row) / base, 4)
            if name == "block-major":
                row |= {"goal": "layout probe", "value": row["over_layer_major"]}
            rows.append(row)
        worst = min(worst, found["block-major"]["over_layer_major"])
    decision = "block-major it is" if worst >= LIMIT else "layer-major strides are to be used"
    verdict = f"{span / 1e9:.0f} GB: block-major reads at {worst:.1%} of layer-major or better: {decision}"
    if not bench.toy:
        rows[-1]["verdict"] = verdict
    return rows


def _gbs(row: Row) -> float:
    return float(row["bytes"] / row["p50"]) * 1e-3


def _rates(bench: Bench, arena: torch.Tensor, span: int, run: int) -> dict[str, Row]:
    calls: dict[str, list[Call]] = {}
    sizes = {}
    for name, stride in _STRIDES.items():
        starts = starts_of(span, stride, run, seed=1).to(bench.device)
        if not starts.numel():
            continue
        if bench.toy:
            starts = starts[:8]
        each = min(run, 32 << 10)
        out = torch.empty(starts.numel(), dtype=torch.int64, device=bench.device)
        calls[name] = [functools.partial(read_runs, arena, starts, each, out)]
        sizes[name] = starts.numel() * each
    timings = time_in_turns(calls)
    rows = {}
    for name, timing in timings.items():
        rows[name] = timed_row(f"{run >> 10} KB runs, {name}", timing, Work(nbytes=float(sizes[name])))
    return rows
