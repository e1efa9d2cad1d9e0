"""What surrounds attention in a step: writing keys and values, norms, the gated unit, the plan, copies of blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from airi.kernels.blocks import copy_blocks
from airi.kernels.glu import glu
from airi.kernels.layout import GRANULE_BYTES
from airi.kernels.norm import add_rms_norm
from airi.kernels.qkv_post import qkv_post
from benches.gpu import oracle, roofline
from benches.gpu.attend import Attend
from benches.gpu.bench import Bench, Case, Row, Wrong, timed_row
from benches.gpu.check_writes import angles, entries_of, positions_of
from benches.gpu.pool import Heads, Pool, make_batch
from benches.gpu.timing import Call, rotations, time_calls

_EPS = 1e-5
_BLOCK_BYTES = 8 << 20


def cases(bench: Bench) -> list[Case]:
    def case(name: str, run: Callable[..., list[Row]], **sizes: int) -> Case:
        return Case(name=name, run=functools.partial(run, goal=name, **sizes), seconds=8)

    if bench.toy:
        return [
            case("qkv_post toy", _qkv_post, rows=2, queries=3),
            case("add_rms_norm toy", _add_rms_norm, tokens=3, hidden=96),
            case("glu toy", _glu, tokens=3, inner=80),
            case("plan toy", _plan, rows=3),
            case("block copy toy", _copy, blocks=3),
        ]
    return [
        case("qkv_post 8k tokens", _qkv_post, rows=1, queries=8192),
        case("qkv_post B256", _qkv_post, rows=256, queries=1),
        case("add_rms_norm 8k x 4096", _add_rms_norm, tokens=8192, hidden=4096),
        case("add_rms_norm B256", _add_rms_norm, tokens=256, hidden=4096),
        case("glu 8k x 14336", _glu, tokens=8192, inner=14336),
        case("plan B256", _plan, rows=256),
        case("block copy", _copy, blocks=64),
    ]


def _dtype(bench: Bench) -> torch.dtype:
    return torch.float32 if bench.toy else torch.bfloat16


def _near(out: torch.Tensor, expected: torch.Tensor, *, times: float = 1.0, interpreted: bool) -> float:
    error = oracle.relative_error(out, expected)
    limit = times * oracle.tolerance(out.dtype, interpreted=interpreted)
    if not error <= limit:
        raise Wrong(f"error {error:.2g} > {limit:g} against float64")
    return float(f"{error:.2g}")


def _qkv_post(bench: Bench, *, goal: str, rows: int, queries: int) -> list[Row]:
    heads = Heads(kv_heads=2, group=2, head_dim=32) if bench.toy else Heads()
    dtype, size = _dtype(bench), 16 if bench.toy else 64
    layers = 2 if bench.toy else 8
    pool = Pool(bench.arena(), heads, dtype=dtype, block_size=size, layers=layers)
    keys = 20 if bench.toy else max(queries, 4096)
    batch = make_batch(pool, (keys,) * rows, (queries,) * rows, seed=1)
    positions, entries = positions_of(batch), entries_of(batch, size)
    cos_sin = angles(bench, keys, heads.head_dim)
    width = heads.q_heads + 2 * heads.kv_heads
    work = roofline.qkv_post(
        batch.tokens,
        q_heads=heads.q_heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        itemsize=dtype.itemsize,
        kv_row=heads.head_dim * dtype.itemsize,
    )
    calls: list[Call] = []
    for i in range(rotations(work.nbytes, bench.device)):
        qkv = torch.randn(batch.tokens, width, heads.head_dim, device=bench.device).to(dtype)
        q_out = torch.empty(
            (heads.kv_heads, batch.tokens, heads.group, heads.head_dim), dtype=dtype, device=bench.device
        )
        place = (positions, entries, pool.arena, pool.layout, q_out)
        offset = pool.layer_offset(i % layers)
        calls.append(functools.partial(qkv_post, qkv, cos_sin, *place, eps=_EPS, layer_offset=offset))
    calls[-1]()
    expected = oracle.rotated(qkv[:, : heads.q_heads], cos_sin, positions)
    expected = expected.view(batch.tokens, heads.kv_heads, heads.group, heads.head_dim).transpose(0, 1)
    error = _near(q_out, expected, interpreted=bench.toy)
    return [timed_row(str(heads), time_calls(calls), work, goal=goal, error=error)]


def _add_rms_norm(bench: Bench, *, goal: str, tokens: int, hidden: int) -> list[Row]:
    dtype = _dtype(bench)
    work = roofline.add_rms_norm(tokens, hidden, itemsize=dtype.itemsize)
    weight = torch.rand(hidden, device=bench.device) + 0.5
    calls: list[Call] = []
    for _ in range(rotations(work.nbytes, bench.device)):
        x, residual, out = (torch.randn(tokens, hidden, device=bench.device).to(dtype) for _ in range(3))
        calls.append(functools.partial(add_rms_norm, x, residual, weight, _EPS, out))
    expected = oracle.rms_norm(x.double() + residual.double(), weight, _EPS)
    calls[-1]()
    error = _near(out, expected, times=2, interpreted=bench.toy)
    return [timed_row(f"{tokens} x {hidden}", time_calls(calls), work, goal=goal, error=error)]


def _glu(bench: Bench, *, goal: str, tokens: int, inner: int) -> list[Row]:
    dtype = _dtype(bench)
    work = roofline.glu(tokens, inner, itemsize=dtype.itemsize)
    calls: list[Call] = []
    for _ in range(rotations(work.nbytes, bench.device)):
        x = torch.randn(tokens, 2 * inner, device=bench.device).to(dtype)
        out = torch.empty((tokens, inner), dtype=dtype, device=bench.device)
        calls.append(functools.partial(glu, x, out, activation="silu"))
    calls[-1]()
    gate, up = x.double().split(inner, 1)
    error = _near(out, torch.nn.functional.silu(gate) * up, times=2, interpreted=bench.toy)
    return [timed_row(f"{tokens} x {inner}", time_calls(calls), work, goal=goal, error=error)]


def _plan(bench: Bench, *, goal: str, rows: int) -> list[Row]:
    heads = Heads(kv_heads=2, group=2, head_dim=32) if bench.toy else Heads()
    pool = Pool(bench.arena(), heads, dtype=_dtype(bench), block_size=16 if bench.toy else 64, layers=1)
    draw = torch.Generator().manual_seed(1)
    lens = torch.randint(1, 40 if bench.toy else 8192, (rows,), generator=draw).tolist()
    attend = Attend(pool, make_batch(pool, lens, seed=1))
    counted = attend.planned_items()
    if counted != attend.items:
        raise Wrong(f"the plan has {counted} items, the host counts {attend.items}")
    timing = time_calls([attend.plan], repeat=64)
    return [timed_row(f"{rows} rows", timing, roofline.Work(), goal=goal, items=attend.items)]


def _copy(bench: Bench, *, goal: str, blocks: int) -> list[Row]:
    """Whole blocks of all layers to other places, as a fork or a compaction copies them."""
    arena = bench.arena()
    size = (1 << 14) if bench.toy else _BLOCK_BYTES
    places = torch.randperm(arena.numel() // size, generator=torch.Generator().manual_seed(1))
    places = places[: 2 * blocks] * (size // GRANULE_BYTES)
    pairs = places.view(blocks, 2).int().to(bench.device)
    units = arena.view(-1, GRANULE_BYTES)
    for place in pairs[:, 0].tolist():
        units[place : place + size // GRANULE_BYTES].random_()
    call = functools.partial(copy_blocks, arena, pairs, size // GRANULE_BYTES)
    call()
    for source, target in pairs.tolist():
        step = size // GRANULE_BYTES
        if not torch.equal(units[source : source + step], units[target : target + step]):
            raise Wrong("a copied block differs from its source")
    timing = time_calls([call])
    return [timed_row(f"{blocks} blocks of {size >> 10} KB", timing, roofline.copy(blocks * size), goal=goal)]
