"""Which tiles decoding should have: keys of a step, warps, stages and programs, at three block sizes.

Only with --tune. What `decode_tiles` chooses is the row to beat; a choice is changed there, by hand, with these rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from airi.kernels import decode as decode_module
from airi.kernels.decode_tiles import PROGRAMS_PER_SM, DecodeTiles
from benches.gpu.attend import Attend, empty_out
from benches.gpu.bench import Bench, Case, Row, Wrong, device_answers, timed_row
from benches.gpu.pool import make_batch, random_queries
from benches.gpu.speed_decode import (
    Shape,
    calls_over_layers,
    check,
    compute_dtype,
    pool_for,
    shapes,
    work_of,
)
from benches.gpu.timing import Call, time_calls

_BLOCK_SIZES = (64, 16, 128)
_TILES, _WARPS, _STAGES = (64, 128, 32), (4, 8, 2), (5, 3, 7)
_FLAT = 1 << 20
"""Programs per multiprocessor, more than there are items: none of them takes a second one."""
_PROGRAMS = (2, 4, 8, _FLAT)
_SHOWN = 6


def cases(bench: Bench) -> list[Case]:
    if not bench.options.tune:
        return []
    sizes = (16,) if bench.toy else _BLOCK_SIZES
    names = ("decode toy",) if bench.toy else ("decode B32 n4k", "decode B128 n4k", "decode fp8 B128 n8k")
    return [
        Case(name=f"tune {name} N{size}", run=functools.partial(_sweep, name=name, size=size), seconds=90)
        for size in sizes
        for name in names
    ]


@contextmanager
def chosen(tiles: DecodeTiles, programs: int) -> Iterator[None]:
    """Decoding is launched with these meanwhile."""
    with (
        mock.patch.object(decode_module, "decode_tiles", return_value=tiles),
        mock.patch.object(decode_module, "PROGRAMS_PER_SM", programs),
    ):
        yield


def _sweep(bench: Bench, *, name: str, size: int) -> list[Row]:
    """The fastest few, and how many were refused because they do not fit the device."""
    shape = shapes(bench)[name]
    shape = Shape(lens=shape.lens, heads=shape.heads, stored=shape.stored, block_size=size)
    pool = pool_for(bench, shape)
    batch = make_batch(pool, shape.lens, seed=6)
    dtype = compute_dtype(shape.stored, toy=bench.toy)
    q = random_queries(batch, shape.heads, dtype, bench.device, seed=7)
    attend = Attend(pool, batch)
    calls = calls_over_layers(attend, q, empty_out(batch, pool, dtype), work_of(attend).nbytes)
    found: list[Row] = []
    refused = 0
    first = itertools.product(_TILES, _WARPS, _STAGES)
    for tile, warps, stages in itertools.islice(first, 2) if bench.toy else first:
        tiles = DecodeTiles(tile=tile, num_warps=warps, num_stages=stages)
        row = _one(attend, calls, q, tiles, PROGRAMS_PER_SM)
        refused += row is None
        found += [row] if row is not None else []
    if not found:
        raise Wrong("no choice of tiles works")
    best = min(found, key=lambda row: row["p50"])
    tiles = DecodeTiles(tile=best["tile"], num_warps=best["warps"], num_stages=best["stages"])
    for programs in _PROGRAMS[:1] if bench.toy else _PROGRAMS:
        row = _one(attend, calls, q, tiles, programs)
        found += [row] if row is not None else []
    found.sort(key=lambda row: row["p50"])
    found[0]["refused"] = refused
    return found[:_SHOWN]


def _one(attend: Attend, calls: list[Call], q: torch.Tensor, tiles: DecodeTiles, programs: int) -> Row | None:
    """None where the device or the compiler refuses the choice; raises Wrong where it computes something else."""
    with chosen(tiles, programs):
        try:
            check(attend, q, q.dtype, 0)
            timing = time_calls(calls)
        except Wrong:
            raise
        except Exception:  # compilers fail in many ways
            if device_answers():
                return None
            raise
    label = f"tile {tiles.tile} warps {tiles.num_warps} stages {tiles.num_stages} programs {programs}"
    sizes = {"tile": tiles.tile, "warps": tiles.num_warps, "stages": tiles.num_stages, "programs": programs}
    return timed_row(label, timing, work_of(attend), **sizes)
