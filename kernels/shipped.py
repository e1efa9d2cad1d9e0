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
from .arch import ARCHS
from .expert_plan import TILE_ROWS, ExpertPlan
from .experts import expert_matmul
from .prefill import paged_prefill
from .routing import route_experts

MAX_TILES = 1024
DECODING = Batch(rows=32, tokens=32)
CHUNKS = Batch(rows=32, tokens=2048)
SIZES = (DECODING, CHUNKS)
PREFILL = Expects(tensor_cores=True, wgmma=True, wide_loads=True)
# Experts, choices per token, hidden size and inner size.
EXPERTS = {"mixtral-8x7b": (8, 2, 4096, 14336), "qwen-3-30b-a3b": (128, 8, 2048, 768)}


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
    for name in ("mixtral-8x7b", "qwen-3-30b-a3b"):
        yield from _experts(name, *EXPERTS[name])


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


def _experts(name: str, experts: int, top_k: int, hidden: int, inner: int) -> Iterator[Case]:
    yield Case(name=f"route_experts {name}", launch=partial(_route, experts, top_k), sizes=(DECODING,))
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.int8):
        archs = tuple(arch for arch in TARGETS if ARCHS[arch].has_fp8 or dtype is not torch.float8_e4m3fn)
        for rows in TILE_ROWS:
            for repeats, columns, width in ((top_k, 2 * inner, hidden), (1, hidden, inner)):
                yield Case(
                    name=f"expert_matmul {name} {str(dtype)[6:]} rows {rows} {columns} x {width}",
                    launch=partial(_expert_matmul, dtype, experts, rows, repeats, columns, width),
                    sizes=(DECODING,),
                    archs=archs,
                    expects=Expects(tensor_cores=True, wgmma=rows >= 64, wide_loads=True),
                )


def _route(experts: int, top_k: int, batch: Batch) -> None:
    route_experts(
        meta(torch.bfloat16, batch.tokens, experts),
        meta(torch.int32, batch.tokens),
        ExpertPlan.allocate("meta", batch.tokens * top_k, experts).narrow(batch.tokens * top_k, 16),
        top_k=top_k,
        normalize=True,
        tile_rows=16,
    )


def _expert_matmul(
    dtype: torch.dtype, experts: int, rows: int, repeats: int, columns: int, width: int, batch: Batch
) -> None:
    assignments = batch.tokens * repeats
    expert_matmul(
        meta(torch.bfloat16, batch.tokens, width),
        meta(dtype, experts, columns, width),
        None if dtype is torch.bfloat16 else meta(torch.float32, experts, columns),
        meta(torch.int32, assignments),
        meta(torch.int32, MAX_TILES, 3),
        meta(torch.bfloat16, assignments, columns),
        tile_rows=rows,
        row_weights=meta(torch.float32, assignments) if repeats == 1 else None,
    )
