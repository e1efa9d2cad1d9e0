"""Kernels that go over rows of activations: norms and the gated unit."""

from __future__ import annotations

import functools

import torch

from airi.kernels.glu import glu
from airi.kernels.norm import add_rms_norm, rms_norm, rms_norm_add
from benches.gpu import oracle
from benches.gpu.bench import Bench, Case, Row
from benches.gpu.check_attention import name_of
from benches.gpu.checks import Checks

_EPS = 1e-5
_LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
_INTERPRETED = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def cases(bench: Bench) -> list[Case]:
    dtypes = (torch.float32, torch.float16) if bench.toy else (torch.bfloat16, torch.float16, torch.float32)
    return [
        *[
            Case(name=f"norms {name_of(d)}", run=functools.partial(_norms, dtype=d), seconds=8)
            for d in dtypes
        ],
        *[Case(name=f"glu {name_of(d)}", run=functools.partial(_glu, dtype=d), seconds=8) for d in dtypes],
    ]


def _limit(bench: Bench, dtype: torch.dtype) -> float:
    return (_INTERPRETED if bench.toy else _LIMITS)[dtype]


def _norms(bench: Bench, *, dtype: torch.dtype) -> list[Row]:
    checks = Checks()
    limit = _limit(bench, dtype)
    shapes = ((3, 96),) if bench.toy else ((1, 4096), (257, 4096), (64, 5120), (33, 576), (8, 16384))
    for rows, hidden in shapes:
        draw = torch.Generator(device=bench.device).manual_seed(rows)
        x, residual = (
            torch.randn(rows, hidden, generator=draw, device=bench.device).to(dtype) for _ in range(2)
        )
        weight = torch.rand(hidden, generator=draw, device=bench.device) + 0.5
        out = torch.full_like(x, float("nan"))
        rms_norm(x, weight, _EPS, out)
        checks.near(f"rms_norm {rows} x {hidden}", out, oracle.rms_norm(x, weight, _EPS), limit)
        total, out = residual.clone(), torch.full_like(x, float("nan"))
        add_rms_norm(x, total, weight, _EPS, out)
        summed = residual.double() + x.double()
        checks.near(f"add_rms_norm residual {rows} x {hidden}", total, summed, limit)
        checks.near(f"add_rms_norm {rows} x {hidden}", out, oracle.rms_norm(summed, weight, _EPS), 2 * limit)
        total = residual.clone()
        rms_norm_add(x, weight, _EPS, total)
        wanted = residual.double() + oracle.rms_norm(x, weight, _EPS)
        checks.near(f"rms_norm_add {rows} x {hidden}", total, wanted, 2 * limit)
    return checks.rows()


def _glu(bench: Bench, *, dtype: torch.dtype) -> list[Row]:
    checks = Checks()
    for rows, inner in ((3, 80),) if bench.toy else ((1, 14336), (257, 14336), (33, 1536)):
        draw = torch.Generator(device=bench.device).manual_seed(rows)
        x = (3 * torch.randn(rows, 2 * inner, generator=draw, device=bench.device)).to(dtype)
        gate, up = x.double().split(inner, 1)
        for activation in ("silu", "gelu_tanh"):
            out = torch.full((rows, inner), float("nan"), dtype=dtype, device=bench.device)
            glu(x, out, activation=activation)
            silu = activation == "silu"
            wanted = (
                torch.nn.functional.silu(gate) if silu else torch.nn.functional.gelu(gate, approximate="tanh")
            )
            checks.near(f"{activation} {rows} x {inner}", out, wanted * up, 2 * _limit(bench, dtype))
    return checks.rows()
