"""The same queries, keys and values to AIRI and to others, in one run and in turns.

AIRI, vLLM's kernels and FlashInfer read the same blocks of the same arena. torch's attention and FlexAttention take
dense tensors: they are given copies, which no figure includes, so they are ahead by all that paging costs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from benches.gpu import oracle, roofline, speed_decode
from benches.gpu.attend import Attend, empty_out
from benches.gpu.bench import Bench, Case, NotHere, Row, Wrong, timed_row
from benches.gpu.peers import PEERS, Inputs, Run
from benches.gpu.pool import Batch, Heads, Pool, make_batch, random_queries
from benches.gpu.timing import Call, time_in_turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Rows of equal lengths."""

    rows: int
    queries: int
    keys: int
    heads: Heads = speed_decode.HEADS
    block_size: int = 64

    @property
    def what(self) -> str:
        return "decode" if self.queries == 1 else "prefill"


def shapes(bench: Bench) -> dict[str, Shape]:
    if bench.toy:
        heads = Heads(kv_heads=2, group=2, head_dim=32)
        return {
            "decode toy": Shape(rows=2, queries=1, keys=20, heads=heads, block_size=16),
            "prefill toy": Shape(rows=1, queries=9, keys=20, heads=heads, block_size=16),
        }
    return {
        "decode B32 n4k": Shape(rows=32, queries=1, keys=4096),
        "decode B128 n4k": Shape(rows=128, queries=1, keys=4096),
        "decode B8 n32k": Shape(rows=8, queries=1, keys=32768),
        "decode B1 n32k": Shape(rows=1, queries=1, keys=32768),
        "prefill causal 8k": Shape(rows=1, queries=8192, keys=8192),
        "prefill q2048 context 30k": Shape(rows=1, queries=2048, keys=32768),
        "prefill causal 8k D64": Shape(rows=1, queries=8192, keys=8192, heads=Heads(head_dim=64)),
    }


def cases(bench: Bench) -> list[Case]:
    from benches.gpu.speed_layout import ceilings

    return [
        Case(name="ceilings", run=ceilings, seconds=10),
        *[
            Case(name=name, run=functools.partial(_compare, shape=shape), seconds=45)
            for name, shape in shapes(bench).items()
        ],
    ]


def _compare(bench: Bench, *, shape: Shape) -> list[Row]:
    """A row for every contestant that is here and right; what is not is named in the first one."""
    dtype = torch.float32 if bench.toy else torch.bfloat16
    pool, batch = _pool_and_batch(bench, shape, dtype)
    q = random_queries(batch, shape.heads, dtype, bench.device, seed=7)
    layers = min(pool.layers, 4)
    inputs = Inputs(bench=bench, pool=pool, batch=batch, q=q, layers=layers)
    contestants, errors, absent = _right_ones(inputs)
    calls: dict[str, list[Call]] = {
        name: [functools.partial(run, layer) for layer in range(layers)] for name, run in contestants.items()
    }
    timings = time_in_turns(calls)
    work = _work(inputs)
    rows = [
        timed_row(name, timing, work, error=float(f"{errors[name]:.2g}")) for name, timing in timings.items()
    ]
    ours = timings["AIRI"].p50
    others = {name: timing.p50 for name, timing in timings.items() if name != "AIRI"}
    for row in rows:
        row["over_airi"] = round(row["p50"] / ours, 3)
        if row["variant"] == "vLLM's Triton":
            row |= {"goal": f"{shape.what} over vLLM's Triton", "value": row["over_airi"]}
    if others:
        best = min(others, key=others.__getitem__)
        rows[0] |= {"goal": f"{shape.what} over the best peer", "value": others[best] / ours, "best": best}
    if absent:
        rows[0]["absent"] = "; ".join(absent)
    return rows


def _pool_and_batch(bench: Bench, shape: Shape, dtype: torch.dtype) -> tuple[Pool, Batch]:
    """Four layers, and four times the blocks that the rows take, so that they lie apart."""
    arena = bench.arena(None if bench.toy else 40 << 30)
    blocks = 4 * shape.rows * -(-shape.keys // shape.block_size)
    pool = Pool(arena, shape.heads, dtype=dtype, block_size=shape.block_size, layers=4)
    pool = Pool(
        arena,
        shape.heads,
        dtype=dtype,
        block_size=shape.block_size,
        layers=4,
        blocks=min(blocks, pool.blocks),
    )
    pool.fill(seed=2)
    return pool, make_batch(pool, (shape.keys,) * shape.rows, (shape.queries,) * shape.rows, seed=6)


def _airi(inputs: Inputs) -> Run:
    attend = Attend(inputs.pool, inputs.batch)
    outs = [empty_out(inputs.batch, inputs.pool, inputs.q.dtype, poison=True) for _ in range(inputs.layers)]

    def run(layer: int) -> torch.Tensor:
        attend(inputs.q, outs[layer], layer)
        return outs[layer]

    return run


def _right_ones(inputs: Inputs) -> tuple[dict[str, Run], dict[str, float], list[str]]:
    """Who is here and agrees with float64, by how much, and why the others are not here."""
    layer = inputs.layers - 1
    expected, _, tokens = oracle.attention(
        inputs.q,
        inputs.pool.arena,
        inputs.pool.layout,
        inputs.batch,
        scale=inputs.scale,
        layer_offset=inputs.pool.layer_offset(layer),
        rows=speed_decode.rows_to_check(inputs.batch),
    )
    # Others may round weights and products where AIRI does not; a wrong mask or block is far beyond this.
    limit = 2 * oracle.tolerance(inputs.q.dtype, interpreted=inputs.bench.toy)
    found: dict[str, Run] = {}
    errors: dict[str, float] = {}
    absent: list[str] = []
    for name, make in ({"AIRI": _airi} | PEERS).items():
        try:
            run = make(inputs)
            errors[name] = oracle.relative_error(inputs.flattened(run(layer))[tokens], expected)
        except NotHere as error:
            absent.append(f"{name}: {error}")
            continue
        except Exception as error:
            if name == "AIRI":
                raise
            absent.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            continue
        if errors[name] <= limit:
            found[name] = run
        elif name == "AIRI":
            raise Wrong(f"error {errors[name]:.2g} > {limit:g} against float64")
        else:
            absent.append(f"{name}: wrong by {errors[name]:.2g}, no speed")
    return found, errors, absent


def _work(inputs: Inputs) -> roofline.Work:
    heads = inputs.pool.heads
    queries, lens, size = inputs.batch.query_lens, inputs.batch.lens, inputs.q.dtype.itemsize
    q_heads, kv_heads, dim = heads.q_heads, heads.kv_heads, heads.head_dim
    if inputs.queries == 1:
        return roofline.decode(lens, q_heads=q_heads, kv_heads=kv_heads, head_dim=dim, itemsize=size)
    return roofline.prefill(queries, lens, q_heads=q_heads, kv_heads=kv_heads, head_dim=dim, itemsize=size)
