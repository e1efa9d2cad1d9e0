"""Chunks of prompts over paged memory, with both variants; beside decoding rows; over a quantised context."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import torch

from benches.gpu import oracle, roofline
from benches.gpu.attend import Attend, Variant, Widened, empty_out
from benches.gpu.bench import Bench, Case, Row, Wrong, device_answers, timed_row
from benches.gpu.pool import Heads, Pool, make_batch, random_queries
from benches.gpu.speed_decode import HEADS, check
from benches.gpu.timing import Call, rotations, time_in_turns

_LAYERS = 8
_BLOCK = 128
_PARTS: tuple[Literal["decode", "prefill"], ...] = ("decode", "prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Rows of so many queries at the end of so many keys."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: Heads = HEADS
    goal: str = ""
    block_size: int = _BLOCK
    dtype: torch.dtype = torch.bfloat16


def shapes(bench: Bench) -> dict[str, Shape]:
    if bench.toy:
        heads = Heads(kv_heads=2, group=2, head_dim=32)
        return {
            "prefill toy": Shape(queries=(9,), keys=(20,), heads=heads, block_size=16, dtype=torch.float32)
        }
    whole = Shape(queries=(8192,), keys=(8192,), goal="prefill causal 8k D128")
    return {
        "prefill causal 8k D128": whole,
        "prefill q2048 context 30k": Shape(queries=(2048,), keys=(32768,), goal="prefill q2048 context 30k"),
        "prefill q512 context 8k": Shape(queries=(512,), keys=(8704,), goal="prefill q512 context 8k"),
        "prefill causal 8k D64": replace(whole, heads=Heads(head_dim=64), goal="prefill causal 8k D64"),
        "prefill causal 8k D256": replace(
            whole, heads=Heads(kv_heads=4, head_dim=256), goal="prefill causal 8k D256"
        ),
        "prefill causal 8k D128 N64": replace(whole, goal="", block_size=64),
        "prefill 16 x 512": Shape(queries=(512,) * 16, keys=(512,) * 16),
    }


def cases(bench: Bench) -> list[Case]:
    return [
        *[
            Case(name=name, run=functools.partial(_measure, shape=shape), seconds=15)
            for name, shape in shapes(bench).items()
        ],
        Case(name="experiment: 2k chunk and B64 n4k on two streams", run=_mixed, seconds=20),
        Case(name="prefill fp8 context", run=_fp8_context, seconds=20),
    ]


def pool_for(bench: Bench, shape: Shape, stored: torch.dtype | None = None) -> Pool:
    """Only the memory that the shapes take: filling it all would cost seconds each time."""
    layers = 2 if bench.toy else _LAYERS
    arena = bench.arena()
    whole = Pool(arena, shape.heads, dtype=stored or shape.dtype, block_size=shape.block_size, layers=layers)
    blocks = min(whole.blocks, 4 * sum(-(-n // shape.block_size) for n in shape.keys))
    pool = Pool(
        arena,
        shape.heads,
        dtype=stored or shape.dtype,
        block_size=shape.block_size,
        layers=layers,
        blocks=blocks,
    )
    pool.fill(seed=2)
    return pool


def work_of(attend: Attend) -> roofline.Work:
    heads, batch = attend.pool.heads, attend.batch
    return roofline.prefill(
        batch.query_lens,
        batch.lens,
        q_heads=heads.q_heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        itemsize=attend.pool.layout.dtype.itemsize,
    )


def calls_of(bench: Bench, attend: Attend, dtype: torch.dtype) -> list[Call]:
    """Calls on layers and queries of their own."""
    batch, pool = attend.batch, attend.pool
    nbytes = work_of(attend).nbytes
    found: list[Call] = []
    for i in range(min(pool.layers, max(2, rotations(nbytes, bench.device)))):
        q = random_queries(batch, pool.heads, dtype, bench.device, seed=10 + i)
        found.append(functools.partial(attend, q, empty_out(batch, pool, dtype), i))
    return found


def _measure(bench: Bench, *, shape: Shape) -> list[Row]:
    pool = pool_for(bench, shape)
    batch = make_batch(pool, shape.keys, shape.queries, seed=6)
    q = random_queries(batch, shape.heads, shape.dtype, bench.device, seed=7)
    calls: dict[str, list[Call]] = {}
    errors: dict[str, float] = {}
    variants: tuple[Variant, ...] = ("auto", "pointer", "tma")
    refused = []
    for variant in variants:
        attend = Attend(pool, batch, variant=variant)
        try:
            errors[variant] = check(attend, q, shape.dtype, pool.layers - 1)
        except Exception as error:  # one that does not take this shape, or not this device, says so
            if variant == "auto" or not device_answers():
                raise
            refused.append(f"{variant}: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")
            continue
        calls[variant] = calls_of(bench, attend, shape.dtype)
    work = work_of(Attend(pool, batch))
    rows = []
    for name, timing in time_in_turns(calls).items():
        more = {"goal": shape.goal} if shape.goal else {}
        label = f"{shape.heads} N{shape.block_size} {name}"
        rows.append(timed_row(label, timing, work, error=float(f"{errors[name]:.2g}"), **more))
    if refused:
        rows[0]["refused"] = "; ".join(refused)
    return rows


def _mixed(bench: Bench) -> list[Row]:
    """What two streams would give: a chunk beside decoding rows, over one after the other as the engine's steps are."""
    heads = Heads(kv_heads=2, group=2, head_dim=32) if bench.toy else Heads()
    dtype = torch.float32 if bench.toy else torch.bfloat16
    keys, queries = ((20, 9), (9, 1)) if bench.toy else ((8192, *(4096,) * 64), (2048, *(1,) * 64))
    shape = Shape(queries=queries, keys=keys, heads=heads, block_size=16 if bench.toy else 64, dtype=dtype)
    pool = pool_for(bench, shape)
    batch = make_batch(pool, keys, queries, seed=6)
    q = random_queries(batch, heads, dtype, bench.device, seed=7)
    out = empty_out(batch, pool, dtype)
    decode, prefill = (Attend(pool, batch, part=part) for part in _PARTS)
    check(Attend(pool, batch), q, dtype, 0)

    def beside(layer: int) -> None:
        if bench.toy:
            decode(q, out, layer)
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            decode(q, out, layer)
        prefill(q, out, layer)
        torch.cuda.current_stream().wait_stream(side)

    layers = range(pool.layers)
    timings = time_in_turns(
        {
            "two streams": [functools.partial(beside, i) for i in layers],
            "prefill alone": [functools.partial(prefill, q, out, i) for i in layers],
            "decode alone": [functools.partial(decode, q, out, i) for i in layers],
        }
    )
    serial = timings["prefill alone"].p50 + timings["decode alone"].p50
    works = {
        "prefill alone": work_of(prefill),
        "decode alone": roofline.Work(),
        "two streams": roofline.Work(),
    }
    rows = [timed_row(name, timing, works[name]) for name, timing in timings.items()]
    rows[0] |= {
        "goal": "experiment: two streams over one",
        "value": round(timings["two streams"].p50 / serial, 4),
    }
    return rows


def _fp8_context(bench: Bench) -> list[Row]:
    """A chunk over a context stored in fp8, widened once per layer, against the same over 16 bits."""
    heads = Heads(kv_heads=2, group=2, head_dim=32) if bench.toy else HEADS
    dtype = torch.float16 if bench.toy else torch.bfloat16
    keys, queries = ((20,), (9,)) if bench.toy else ((32768,), (2048,))
    size = 16 if bench.toy else 64
    shape = Shape(queries=queries, keys=keys, heads=heads, block_size=size, dtype=dtype)
    pool = pool_for(bench, shape, torch.float8_e4m3fn)
    batch = make_batch(pool, keys, queries, seed=6)
    wide = Widened(pool, batch, dtype)
    attend = Attend(wide.pool, wide.batch)
    q = random_queries(batch, heads, dtype, bench.device, seed=7)
    out = empty_out(batch, pool, dtype)

    def both(layer: int) -> None:
        wide.gather(layer)
        attend(q, out, 0)

    both(pool.layers - 1)
    expected, _, _ = oracle.attention(
        q,
        pool.arena,
        pool.layout,
        batch,
        scale=attend.scale,
        layer_offset=pool.layer_offset(pool.layers - 1),
    )
    error, limit = oracle.relative_error(out, expected), oracle.RELATIVE_QUANTISED
    if not error <= limit:
        raise Wrong(f"error {error:.2g} > {limit:g} against float64")
    layers = range(pool.layers)
    timings = time_in_turns(
        {
            "widened": [functools.partial(both, i) for i in layers],
            "16 bits": [functools.partial(attend, q, out, 0) for _ in layers],
        }
    )
    rows = [timed_row(name, timing, work_of(attend)) for name, timing in timings.items()]
    ratio = timings["16 bits"].p50 / timings["widened"].p50
    rows[0] |= {"goal": "fp8 context over bf16", "value": round(ratio, 4), "error": float(f"{error:.2g}")}
    return rows
