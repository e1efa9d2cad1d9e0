"""Decoding over paged memory: the combination of partial results is part of it, the plan (once a step) is not.

Every call reads another layer of the same random blocks, so that no call finds in L2 what it needs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from benches.gpu import oracle, roofline
from benches.gpu.attend import Attend, Mode, empty_out
from benches.gpu.bench import Bench, Case, Row, Wrong, timed_row
from benches.gpu.pool import Batch, Heads, Order, Pool, make_batch, random_queries, zipf_lengths
from benches.gpu.timing import Call, rotations, time_calls, time_in_turns

HEADS = Heads()
_ORDERS: tuple[Order, ...] = ("block-major", "layer-major")
_LAYERS = 32
_CHECKED_KEYS = 40_000
"""Rows are compared with float64 up to so many keys together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Lengths of the rows and how keys are stored."""

    lens: tuple[int, ...]
    goal: str = ""
    heads: Heads = HEADS
    stored: torch.dtype = torch.bfloat16
    order: Order = "block-major"
    block_size: int = 64
    mode: Mode = "invariant"
    layers: int = _LAYERS
    """Of a block; fewer where the rows' blocks would not fit otherwise."""


def _even(rows: int, keys: int) -> tuple[int, ...]:
    return (keys,) * rows


def shapes(bench: Bench) -> dict[str, Shape]:
    """What is measured, most important first."""
    if bench.toy:
        heads = Heads(kv_heads=2, group=2, head_dim=32)
        return {
            "decode toy": Shape(lens=(20, 5), heads=heads, stored=torch.float32, block_size=16),
            "decode toy fp8": Shape(lens=(20,), heads=heads, stored=torch.float8_e4m3fn, block_size=16),
        }
    skewed = tuple(zipf_lengths(64, 128, 65536, seed=4, most=600_000))
    found = {
        "decode B128 n4k": Shape(lens=_even(128, 4096), goal="decode >= 2 GB per layer"),
        "decode B32 n4k": Shape(lens=_even(32, 4096), goal="decode B32 n4k"),
        "decode B8 n32k": Shape(lens=_even(8, 32768), goal="decode B8 n32k"),
        "decode B1 n128k": Shape(lens=_even(1, 131072), goal="decode B1 n128k"),
        "decode B1 n32k": Shape(lens=_even(1, 32768), goal="decode B1 n32k"),
        "decode B1 n4k": Shape(lens=_even(1, 4096), goal="decode B1 n4k"),
        "decode skewed B64": Shape(lens=skewed, goal="decode skewed B64"),
        "decode fp8 B128 n8k": Shape(
            lens=_even(128, 8192), goal="decode fp8 B128 n8k", stored=torch.float8_e4m3fn
        ),
        "decode int8 B128 n8k": Shape(lens=_even(128, 8192), stored=torch.int8),
        "decode B256 n4k": Shape(lens=_even(256, 4096), goal="decode >= 2 GB per layer", layers=16),
        "decode B256 n2k": Shape(lens=_even(256, 2048)),
        "decode B32 n4k fast": Shape(lens=_even(32, 4096), mode="fast"),
        "decode B32 n4k N16": Shape(lens=_even(32, 4096), block_size=16),
    }
    for heads in (Heads(group=1), Heads(group=8), Heads(head_dim=64), Heads(kv_heads=4, head_dim=256)):
        found[f"decode B32 n4k {heads}"] = Shape(lens=_even(32, 4096), heads=heads)
    return found


def cases(bench: Bench) -> list[Case]:
    found = [
        Case(name=name, run=functools.partial(_measure, shape=shape), seconds=12)
        for name, shape in shapes(bench).items()
    ]
    orders = Case(name="decode layer-major", run=_orders, seconds=15)
    return [*found[:1], orders, *found[1:]]


def pool_for(bench: Bench, shape: Shape) -> Pool:
    """As many blocks of 32 layers as the arena has room for, filled."""
    layers = 2 if bench.toy else shape.layers
    arena = bench.arena()
    pool = Pool(
        arena, shape.heads, dtype=shape.stored, block_size=shape.block_size, layers=layers, order=shape.order
    )
    pool.fill(seed=2)
    return pool


def compute_dtype(stored: torch.dtype, *, toy: bool) -> torch.dtype:
    """Of queries and outputs."""
    return stored if stored.itemsize > 1 else torch.float16 if toy else torch.bfloat16


def rows_to_check(batch: Batch) -> list[int]:
    """First, last and others while they hold few enough keys; at least one."""
    found: list[int] = []
    keys = 0
    for row in (0, batch.rows - 1, *range(1, batch.rows - 1)):
        if row not in found and (not found or keys + batch.lens[row] <= _CHECKED_KEYS):
            found.append(row)
            keys += batch.lens[row]
    return found


def check(attend: Attend, q: torch.Tensor, dtype: torch.dtype, layer: int) -> float:
    """The relative error against float64 on the data that is timed; raises Wrong where it is too large."""
    pool, batch = attend.pool, attend.batch
    out = empty_out(batch, pool, dtype, poison=True)
    attend(q, out, layer)
    expected, _, tokens = oracle.attention(
        q,
        pool.arena,
        pool.layout,
        batch,
        scale=attend.scale,
        layer_offset=pool.layer_offset(layer),
        rows=rows_to_check(batch),
    )
    error = oracle.relative_error(out[tokens], expected)
    limit = oracle.tolerance(dtype, pool.layout, interpreted=q.device.type == "cpu")
    if not error <= limit:
        raise Wrong(f"error {error:.2g} > {limit:g} against float64")
    return error


def calls_over_layers(attend: Attend, q: torch.Tensor, out: torch.Tensor, nbytes: float) -> list[Call]:
    """Calls on as many layers as it takes to leave L2 behind, at least 8."""
    layers = attend.pool.layers
    count = min(layers, max(8, rotations(nbytes, q.device)))
    return [functools.partial(attend, q, out, layer) for layer in range(count)]


def work_of(attend: Attend) -> roofline.Work:
    heads, layout = attend.pool.heads, attend.pool.layout
    return roofline.decode(
        attend.batch.lens,
        q_heads=heads.q_heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        itemsize=layout.dtype.itemsize,
        items=attend.items,
        scale_bytes=attend.pool.scale_bytes,
    )


def _measure(bench: Bench, *, shape: Shape) -> list[Row]:
    pool = pool_for(bench, shape)
    batch = make_batch(pool, shape.lens, seed=6)
    dtype = compute_dtype(shape.stored, toy=bench.toy)
    q = random_queries(batch, shape.heads, dtype, bench.device, seed=7)
    attend = Attend(pool, batch, mode=shape.mode)
    error = max(check(attend, q, dtype, layer) for layer in (0, pool.layers - 1))
    out = empty_out(batch, pool, dtype)
    work = work_of(attend)
    timing = time_calls(calls_over_layers(attend, q, out, work.nbytes))
    more = {"goal": shape.goal} if shape.goal else {}
    name = str(shape.stored).removeprefix("torch.")
    variant = f"{name} {shape.heads} N{shape.block_size} {shape.mode}"
    return [timed_row(variant, timing, work, error=float(f"{error:.2g}"), items=attend.items, **more)]


def _orders(bench: Bench) -> list[Row]:
    """The same blocks read in both orders, in turns."""
    shape = next(iter(shapes(bench).values()))
    pool = pool_for(bench, shape)
    dtype = compute_dtype(shape.stored, toy=bench.toy)
    calls: dict[str, list[Call]] = {}
    work = roofline.Work()
    for order in _ORDERS:
        ordered = pool.with_order(order)
        batch = make_batch(ordered, shape.lens, seed=6)
        q = random_queries(batch, shape.heads, dtype, bench.device, seed=7)
        attend = Attend(ordered, batch)
        check(attend, q, dtype, 1)
        work = work_of(attend)
        calls[order] = calls_over_layers(attend, q, empty_out(batch, ordered, dtype), work.nbytes)
    timings = time_in_turns(calls)
    rows = [timed_row(order, timing, work) for order, timing in timings.items()]
    ratio = timings["layer-major"].p50 / timings["block-major"].p50
    rows[0] |= {"goal": "block-major over layer-major", "value": round(ratio, 4)}
    return rows
