"""Tokens routed to experts, and products with their weights, against float64."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from airi.kernels.expert_plan import TILE_ROWS, ExpertPlan
from airi.kernels.experts import expert_matmul
from airi.kernels.routing import route_experts
from benches.gpu import oracle
from benches.gpu.bench import Bench, Case, Row
from benches.gpu.check_attention import name_of
from benches.gpu.checks import Checks

_QUANTISED = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A layer of experts and how many tokens come."""

    tokens: int
    experts: int
    top_k: int
    columns: int
    width: int

    def __str__(self) -> str:
        return f"T{self.tokens} E{self.experts} k{self.top_k} {self.columns} x {self.width}"


_SHAPES = (
    Shape(tokens=1, experts=8, top_k=2, columns=4096, width=1024),
    Shape(tokens=37, experts=128, top_k=8, columns=768, width=2048),
    Shape(tokens=1000, experts=8, top_k=2, columns=1024, width=768),
)


def cases(bench: Bench) -> list[Case]:
    dtypes = (torch.float32,) if bench.toy else (torch.bfloat16, torch.float16, torch.float32)
    weights = [(d, d) for d in dtypes]
    if not bench.toy:
        weights += [(torch.bfloat16, stored) for stored in _QUANTISED]
    return [
        Case(
            name=f"experts {name_of(d)}" + (f" over {name_of(w)}" if w != d else ""),
            run=functools.partial(_experts, dtype=d, stored=w),
            seconds=15,
        )
        for d, w in weights
    ]


def _experts(bench: Bench, *, dtype: torch.dtype, stored: torch.dtype) -> list[Row]:
    checks = Checks()
    shapes = (Shape(tokens=5, experts=4, top_k=2, columns=48, width=32),) if bench.toy else _SHAPES
    for shape in shapes:
        for tile_rows in TILE_ROWS[:1] if bench.toy else TILE_ROWS:
            _one(checks, bench, shape, dtype, stored, tile_rows)
    return checks.rows()


def _one(
    checks: Checks, bench: Bench, shape: Shape, dtype: torch.dtype, stored: torch.dtype, tile_rows: int
) -> None:
    draw = torch.Generator(device=bench.device).manual_seed(shape.tokens)
    scores, x = (
        torch.randn(shape.tokens, n, generator=draw, device=bench.device).to(dtype)
        for n in (shape.experts, shape.width)
    )
    entries = torch.zeros(shape.tokens, dtype=torch.int32, device=bench.device)
    entries[shape.tokens // 2 + 1 :: 7] = -1
    plan = ExpertPlan.allocate(bench.device, shape.tokens * shape.top_k, shape.experts)
    plan = plan.narrow(shape.tokens * shape.top_k, tile_rows)
    route_experts(scores, entries, plan, top_k=shape.top_k, normalize=True, tile_rows=tile_rows)
    label = f"{shape} tiles of {tile_rows}"
    chosen = plan.experts.view(shape.tokens, shape.top_k).long()
    live = entries >= 0
    checks.true(f"{label} padding", ok=bool((chosen[~live] == -1).all()), else_say="goes to an expert")
    p = torch.softmax(scores.double(), 1)
    best = p.topk(shape.top_k, 1).values
    taken = p.gather(1, chosen.clamp_min(0))
    checks.near(f"{label} choice", taken.sort(1, descending=True).values[live], best[live], 1e-6)
    weights = plan.weights.view(shape.tokens, shape.top_k)
    checks.near(f"{label} weights", weights[live], (taken / taken.sum(1, keepdim=True))[live], 1e-5)
    weight, scales, real = _weight(shape, dtype, stored, draw)
    out = torch.full(
        (shape.tokens * shape.top_k, shape.columns), float("nan"), dtype=dtype, device=bench.device
    )
    expert_matmul(
        x,
        weight,
        scales,
        plan.order,
        plan.tiles,
        out,
        tile_rows=tile_rows,
        row_weights=plan.weights,
    )
    products = torch.einsum("enk,tk->ten", real.double(), x.double())
    wanted = products[torch.arange(shape.tokens, device=bench.device)[:, None], chosen.clamp_min(0)]
    wanted = wanted * weights.double()[..., None]
    found = out.view(shape.tokens, shape.top_k, shape.columns)
    limit = oracle.tolerance(dtype, interpreted=bench.toy)
    checks.near(f"{label} product", found[live], wanted[live], limit)


def _weight(
    shape: Shape, dtype: torch.dtype, stored: torch.dtype, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """What is stored, its scales where it is quantised, and what both say."""
    sizes = (shape.experts, shape.columns, shape.width)
    values = torch.randn(sizes, generator=draw, device=draw.device) / shape.width**0.5
    if stored not in _QUANTISED:
        return values.to(stored), None, values.to(stored)
    most = _QUANTISED[stored]
    scales = values.abs().amax(-1) / most
    scaled = (values / scales[..., None]).clamp(-most, most)
    kept = (scaled.round() if stored is torch.int8 else scaled).to(stored)
    return kept, scales, kept.float() * scales[..., None]
