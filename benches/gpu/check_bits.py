"""What must not change a bit of attention's results: graphs, places and order of blocks, what runs beside a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from airi.kernels.layout import GRANULE_BYTES
from benches.gpu.attend import Attend, empty_out
from benches.gpu.bench import Bench, Case, NotHere, Row
from benches.gpu.check_attention import a_batch, compare, small_pool, usual
from benches.gpu.checks import Checks
from benches.gpu.pool import Batch, Heads, Pool, make_batch, random_queries
from benches.gpu.timing import capture

_FAST_ERROR = 1e-3
"""Between two ways to cut the same keys, in 16 bits of which 11 are significant."""


def cases(bench: Bench) -> list[Case]:
    return [
        Case(name="attention: graph replay is eager", run=_replay, seconds=15),
        Case(name="attention: block-major is layer-major", run=_orders, seconds=15),
        Case(name="attention: permuted tables", run=_permuted, seconds=15),
        Case(name="attention: alone is mixed", run=_alone, seconds=15),
        Case(name="attention: fast mode", run=_fast, seconds=15),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What runs: rows of one query or chunks, in a dtype, over memory of another."""

    prefill: bool
    dtype: torch.dtype
    stored: torch.dtype

    def __str__(self) -> str:
        what = "prefill" if self.prefill else "decode"
        return what if self.dtype is self.stored else f"{what} over {str(self.stored).removeprefix('torch.')}"


def _kinds(bench: Bench) -> list[_Kind]:
    _, dtype = usual(bench)
    return [
        _Kind(prefill=False, dtype=dtype, stored=dtype),
        _Kind(prefill=True, dtype=dtype, stored=dtype),
        _Kind(
            prefill=False,
            dtype=torch.float16 if bench.toy else dtype,
            stored=torch.int8 if bench.toy else torch.float8_e4m3fn,
        ),
    ]


def _start(bench: Bench, kind: _Kind) -> tuple[Pool, Batch, torch.Tensor]:
    heads, _ = usual(bench)
    pool = small_pool(bench, heads, kind.stored)
    batch = a_batch(bench, pool, prefill=kind.prefill)
    if pool.layout.is_quantised:  # chunks read no quantised memory
        batch = make_batch(pool, batch.lens, seed=1)
    return pool, batch, random_queries(batch, heads, kind.dtype, bench.device, seed=3)


def _run(pool: Pool, batch: Batch, q: torch.Tensor) -> torch.Tensor:
    out = empty_out(batch, pool, q.dtype)
    Attend(pool, batch)(q, out, pool.layers - 1)
    return out


def _replay(bench: Bench) -> list[Row]:
    """A graph captured at one set of lengths, replayed at another, gives what eager calls give there."""
    if bench.toy:
        raise NotHere("graphs need a GPU")
    checks = Checks()
    for kind in _kinds(bench):
        pool, batch, q = _start(bench, kind)
        out = empty_out(batch, pool, kind.dtype)
        attend = Attend(pool, batch)

        def step(attend: Attend = attend, q: torch.Tensor = q, out: torch.Tensor = out) -> None:
            attend.plan()
            attend(q, out, 1)

        graph = capture([step])
        context = batch.seq_lens - batch.query_start.diff()
        batch.seq_lens.copy_(torch.where(context > 200, batch.seq_lens - 100, batch.seq_lens))
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        replayed = out.clone()
        out.fill_(float("nan"))
        step()
        checks.same_bits(str(kind), replayed, out)
    return checks.rows()


def _orders(bench: Bench) -> list[Row]:
    checks = Checks()
    for kind in _kinds(bench):
        pool, batch, q = _start(bench, kind)
        first = _run(pool, batch, q)
        other = pool.with_order("layer-major")
        step = pool.unit * pool.layers // GRANULE_BYTES
        blocks = torch.div(batch.block_table, step, rounding_mode="floor")
        moved = _moved(batch, other.entries(blocks).to(batch.block_table.device))
        _copy_units(pool, other)
        checks.same_bits(str(kind), first, _run(other, moved, q))
    return checks.rows()


def _moved(batch: Batch, table: torch.Tensor) -> Batch:
    return Batch(
        query_start=batch.query_start,
        seq_lens=batch.seq_lens,
        slots=batch.slots,
        block_table=table,
        query_lens=batch.query_lens,
        lens=batch.lens,
    )


def _copy_units(source: Pool, target: Pool) -> None:
    """Rewrites the arena, read in one order, so that it reads the same in the other."""
    raw = source.arena[source.base : source.base + source.nbytes]
    units = raw.view(source.blocks, source.layers, source.unit).transpose(0, 1).clone()
    raw.view(target.layers, target.blocks, target.unit).copy_(units)


def _permuted(bench: Bench) -> list[Row]:
    """The same keys in other blocks give the same bits."""
    checks = Checks()
    for kind in _kinds(bench):
        pool, batch, q = _start(bench, kind)
        first = _run(pool, batch, q)
        step = pool.unit * pool.layers
        order = torch.randperm(pool.blocks, generator=torch.Generator().manual_seed(7)).to(bench.device)
        raw = pool.arena[: pool.nbytes].view(pool.blocks, step)
        raw[order] = raw.clone()
        blocks = batch.block_table.long() * GRANULE_BYTES // step
        moved = _moved(batch, pool.entries(order[blocks]))
        checks.same_bits(str(kind), first, _run(pool, moved, q))
    return checks.rows()


def _alone(bench: Bench) -> list[Row]:
    """In the invariant mode a row's bits do not depend on what runs beside it."""
    checks = Checks()
    for kind in _kinds(bench):
        pool, batch, q = _start(bench, kind)
        together = _run(pool, batch, q)
        starts = batch.query_start.tolist()
        for row in range(batch.rows):
            begin, end = starts[row], starts[row + 1]
            if begin == end:
                continue
            single = Batch(
                query_start=torch.tensor([0, end - begin], dtype=torch.int32, device=bench.device),
                seq_lens=batch.seq_lens[row : row + 1].clone(),
                slots=batch.slots[row : row + 1].clone(),
                block_table=batch.block_table,
                query_lens=batch.query_lens[row : row + 1],
                lens=batch.lens[row : row + 1],
            )
            alone = _run(pool, single, q[:, begin:end].contiguous())
            label = f"{kind}, {batch.lens[row]} keys, {end - begin} queries"
            checks.same_bits(label, alone, together[begin:end])
    return checks.rows()


def _fast(bench: Bench) -> list[Row]:
    """Keys cut by the load of the device: right, and near what the invariant cuts give."""
    heads, dtype = usual(bench)
    checks = Checks()
    pool = small_pool(bench, heads, dtype)
    compare(checks, "fast", pool, a_batch(bench, pool, prefill=False), dtype, mode="fast")
    _two_cuts(checks, bench, heads)
    return checks.rows()


def _two_cuts(checks: Checks, bench: Bench, heads: Heads) -> None:
    pool = small_pool(bench, heads, torch.float16)
    batch = a_batch(bench, pool, prefill=False)
    q = random_queries(batch, heads, torch.float16, bench.device, seed=3)
    invariant, fast = (empty_out(batch, pool, torch.float16, poison=True) for _ in range(2))
    Attend(pool, batch)(q, invariant, 1)
    Attend(pool, batch, mode="fast")(q, fast, 1)
    checks.near("fast beside invariant", fast, invariant, _FAST_ERROR)
