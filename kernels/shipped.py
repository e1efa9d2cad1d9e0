"""Every kernel configuration that ships: what the compile gate checks is what a start on a GPU warms up.

A case calls one launcher on meta tensors; `variants` says what that compiles on an architecture. Each value that a
kernel is compiled for (head dim, group, dtype, window, soft cap, block size) is in a case here or does not ship.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import torch

from ._shapes import KEPT, LLAMA, MODELS, Batch, Shape, arena, meta
from ._variants import TARGETS, Expects, Variant, variants_of
from .prefill import paged_prefill

MAX_TILES = 1024
DECODING = Batch(rows=32, tokens=32)
CHUNKS = Batch(rows=32, tokens=2048)
SIZES = (DECODING, CHUNKS)
PREFILL = Expects(tensor_cores=True, wgmma=True, wide_loads=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of a launcher, as the engine makes it for a step of some size."""

    name: str
    launch: Callable[[Batch], object]
    expects: Expects = field(default_factory=Expects)
    archs: tuple[str, ...] = tuple(TARGETS)
    # Part of the path of a Llama-3-8B shape in bfloat16: compiled by every test run.
    quick: bool = False
    # Those that compile it differently.
    sizes: tuple[Batch, ...] = SIZES


def variants(arch: str, *, quick: bool = False) -> Iterator[Variant]:
    """What is compiled for `arch` (a key of `TARGETS`), each compiled form once; `quick` leaves the rest out."""
    seen = set()
    for case in cases():
        if arch in case.archs and (case.quick or not quick):
            for variant in case_variants(case, arch, case.sizes):
                if variant.identity not in seen:
                    seen.add(variant.identity)
                    yield variant


def case_variants(case: Case, arch: str, sizes: Iterable[Batch]) -> Iterator[Variant]:
    """What `case` compiles for steps of these sizes; one form may come twice."""
    for batch in sizes:
        name = f"{case.name} x {batch.tokens}" if len(case.sizes) > 1 else case.name
        yield from variants_of(arch, name, partial(case.launch, batch), case.expects)


def cases() -> Iterator[Case]:
    for shape in (*MODELS, *KEPT):
        yield from _attention(shape)


def _attention(shape: Shape) -> Iterator[Case]:
    quick = shape is LLAMA
    if not shape.layout.is_quantised:
        yield Case(
            name=f"paged_prefill {shape.name}",
            launch=partial(_prefill, shape, "pointer"),
            sizes=(CHUNKS,),
            expects=PREFILL,
            quick=quick,
        )
    if not shape.layout.is_quantised and shape.head_dim not in (80, 96) and shape.block_size % 64 == 0:
        yield Case(
            name=f"paged_prefill {shape.name}",
            launch=partial(_prefill, shape, "tma"),
            archs=("sm_90",),
            sizes=(CHUNKS,),
            expects=PREFILL,
            quick=quick,
        )


def _prefill(shape: Shape, variant: str, batch: Batch) -> None:
    paged_prefill(
        shape.queries(batch.tokens),
        arena(),
        shape.layout,
        shape.block_table(),
        batch.slots,
        batch.query_start,
        batch.seq_lens,
        SimpleNamespace(tiles=meta(torch.int32, MAX_TILES, 2)),
        shape.out(batch.tokens),
        scale=shape.scale,
        num_tiles=MAX_TILES,
        layer_offset=shape.layer_offset,
        window=shape.window,
        softcap=shape.softcap,
        variant=variant,
    )
