"""Products with routed experts, against the specification."""

from __future__ import annotations

import pytest
import torch

from airi.engine.backends.cuda.moe import plan_experts
from airi.kernels import reference
from airi.kernels.arch import ARCHS, Arch
from airi.kernels.experts import TILE_ROWS, expert_matmul, expert_tiles
from tests.kernels.tolerances import RELATIVE, RELATIVE_QUANTISED, relative_error


def case(
    dtype: torch.dtype, *, tokens: int, top_k: int, experts: int, columns: int, width: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, order, tiles and row weights; some assignments go to no expert."""
    torch.manual_seed(tokens + columns)
    x = torch.randn(tokens, width).to(dtype)
    weight = (torch.randn(experts, columns, width) / width**0.5).to(dtype)
    chosen = torch.rand(tokens, experts).topk(top_k, dim=1).indices
    if tokens > 1:
        chosen[0] = experts
    plan = plan_experts(chosen.flatten(), experts, rows)
    return x, weight, plan.order, plan.tiles, torch.rand(tokens * top_k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "columns", "width", "rows"),
    [(1, 2, 4, 33, 40, 16), (5, 2, 6, 64, 128, 16), (70, 2, 3, 96, 65, 64), (150, 1, 2, 130, 64, 64)],
)
def test_products_are_those_of_the_specification_and_nothing_else_is_written(
    dtype: torch.dtype, tokens: int, top_k: int, experts: int, columns: int, width: int, rows: int
) -> None:
    x, weight, order, tiles, row_weights = case(
        dtype, tokens=tokens, top_k=top_k, experts=experts, columns=columns, width=width, rows=rows
    )
    for weights in (None, row_weights):
        out, expected = (torch.full((tokens * top_k, columns), torch.nan, dtype=dtype) for _ in range(2))
        expert_matmul(x, weight, None, order, tiles, out, tile_rows=rows, row_weights=weights)
        reference.expert_matmul(x, weight, None, order, tiles, expected, tile_rows=rows, row_weights=weights)
        assert torch.equal(out.isnan(), expected.isnan())
        assert out[:top_k].isnan().all() == (tokens > 1)
        assert relative_error(out.nan_to_num(), expected.nan_to_num()) < RELATIVE[dtype]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_8_bit_weights_are_multiplied_by_their_scales(dtype: torch.dtype) -> None:
    x, weight, order, tiles, row_weights = case(
        torch.float16, tokens=9, top_k=2, experts=3, columns=48, width=96, rows=16
    )
    stored, scales = reference.quantise(weight, dtype)
    out, expected = (torch.zeros(18, 48, dtype=torch.float16) for _ in range(2))
    expert_matmul(x, stored, scales, order, tiles, out, tile_rows=16, row_weights=row_weights)
    reference.expert_matmul(x, stored, scales, order, tiles, expected, tile_rows=16, row_weights=row_weights)
    assert relative_error(out, expected) < RELATIVE_QUANTISED


@pytest.mark.parametrize("arch", ARCHS.values(), ids=str)
@pytest.mark.parametrize("rows", TILE_ROWS)
def test_tiles_fit_shared_memory(arch: Arch, rows: int) -> None:
    for x_bytes, weight_bytes in ((2, 2), (2, 1), (4, 4)):
        cut = expert_tiles(arch, rows, x_bytes, weight_bytes)
        stage = cut.block_k * (rows * x_bytes + cut.block_n * weight_bytes)
        buffers = cut.num_stages - arch.is_amd
        assert buffers * stage <= arch.max_shared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 8, dtype=torch.float64)}, "x must be"),
        ({"weight": torch.zeros(2, 3, 9)}, r"weight must be .* \[any, any, 8\], got float32 \[2, 3, 9\]"),
        ({"scales": torch.ones(2, 3)}, "scales must be False for torch.float32 weights, got True"),
        ({"order": torch.zeros(4)}, "order must be int32"),
        ({"tiles": torch.zeros(1, 2, dtype=torch.int32)}, "tiles must be int32"),
        ({"out": torch.zeros(4, 4)}, r"out must be float32 \[4, 3\]"),
        ({"row_weights": torch.zeros(3)}, r"row_weights must be float32 \[4\]"),
        ({"tile_rows": 24}, "tile_rows must be one of"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "x": torch.zeros(4, 8),
        "weight": torch.zeros(2, 3, 8),
        "scales": None,
        "order": torch.zeros(4, dtype=torch.int32),
        "tiles": torch.zeros(1, 3, dtype=torch.int32),
        "out": torch.zeros(4, 3),
        "tile_rows": 16,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        expert_matmul(**arguments)
