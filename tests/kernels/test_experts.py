"""Products with routed experts, against the specification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter

from airi.kernels import reference
from airi.kernels.arch import ARCHS, Arch
from airi.kernels.expert_plan import TILE_ROWS, ExpertPlan
from airi.kernels.experts import expert_matmul, expert_tiles
from airi.kernels.routing import route_experts
from tests.kernels.tolerances import RELATIVE, RELATIVE_QUANTISED, relative_error


def case(
    dtype: torch.dtype, *, tokens: int, top_k: int, experts: int, columns: int, width: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, order, tiles and row weights; some assignments go to no expert."""
    torch.manual_seed(tokens + columns)
    x = torch.randn(tokens, width).to(dtype)
    weight = (torch.randn(experts, columns, width) / width**0.5).to(dtype)
    entries = torch.zeros(tokens, dtype=torch.int32)
    if tokens > 1:
        entries[0] = -1
    plan = ExpertPlan.allocate("cpu", tokens * top_k, experts).narrow(tokens * top_k, rows)
    scores = torch.randn(tokens, experts)
    reference.route_experts(scores, entries, plan, top_k=top_k, normalize=True, tile_rows=rows)
    return x, weight, plan.order, plan.tiles, plan.weights


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


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "rows"),
    [(1, 4, 2, 16), (3, 6, 1, 16), (40, 5, 3, 16), (10, 128, 8, 64), (70, 1, 1, 64), (9, 9, 9, 16)],
)
def test_routing_is_that_of_the_specification(
    tokens: int, experts: int, top_k: int, rows: int, *, normalize: bool
) -> None:
    torch.manual_seed(tokens)
    scores = torch.randn(tokens, 2 * experts)[:, :experts]
    entries = torch.randint(-1, 3, (tokens,), dtype=torch.int32)
    found, expected = (ExpertPlan.allocate("cpu", 1000, experts).narrow(tokens * top_k, rows) for _ in "ab")
    for _ in range(2):  # counts are zero again after the first
        found.tiles.fill_(-1)
        route_experts(scores, entries, found, top_k=top_k, normalize=normalize, tile_rows=rows)
    reference.route_experts(scores, entries, expected, top_k=top_k, normalize=normalize, tile_rows=rows)
    assert torch.equal(found.experts, expected.experts)
    torch.testing.assert_close(found.weights, expected.weights)
    used = expected.tiles[:, 2] > 0
    assert torch.equal(found.tiles[used], expected.tiles[used])
    assert not found.tiles[~used][:, 2].any()
    at = 0
    for expert in range(experts):
        end = at + int((expected.experts == expert).sum())
        assert torch.equal(found.order[at:end].sort().values, expected.order[at:end])
        at = end


def test_equal_scores_choose_the_first_experts() -> None:
    plan = ExpertPlan.allocate("cpu", 6, 5).narrow(6, 16)
    entries = torch.zeros(2, dtype=torch.int32)
    route_experts(torch.ones(2, 5), entries, plan, top_k=3, normalize=True, tile_rows=16)
    assert plan.experts.tolist() == [0, 1, 2] * 2


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_token_of_nan_leaves_the_others_alone() -> None:
    plan = ExpertPlan.allocate("cpu", 6, 5).narrow(6, 16)
    scores = torch.randn(3, 5)
    scores[1] = torch.nan
    route_experts(scores, torch.zeros(3, dtype=torch.int32), plan, top_k=2, normalize=True, tile_rows=16)
    assert plan.experts[[0, 1, 4, 5]].tolist() == scores[[0, 2]].topk(2).indices.flatten().tolist()
    assert plan.weights.isnan().tolist() == [False, False, True, True, False, False]
    assert int(plan.tiles[:, 2].sum()) == 6


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("experts", [3, 5, 6])
def test_a_token_of_nan_goes_to_experts_that_there_are_whichever_a_device_finds_greatest(
    experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device compares in pairs, and NaN is not less than anything: the last place may win, which is padding."""

    def last_of_nan(values: NDArray[Any], axis: int, *, keepdims: bool) -> NDArray[Any]:
        has_nan = np.isnan(values).any(axis, keepdims=keepdims)
        return np.where(has_nan, values.shape[axis] - 1, np.argmax(values, axis, keepdims=keepdims))

    min_max = interpreter.ReduceOps.min_max

    def as_on_a_device(self: Any, values: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        return min_max(self, values, val_reduce_op, idx_reduce_op and last_of_nan)

    monkeypatch.setattr(interpreter.ReduceOps, "min_max", as_on_a_device)
    plan = ExpertPlan.allocate("cpu", 6, experts).narrow(6, 16)
    behind = {name: torch.zeros(16, dtype=torch.int32) for name in ("counts", "cursors", "order")}
    plan = replace(plan, **{name: memory[: len(getattr(plan, name))] for name, memory in behind.items()})
    scores = torch.randn(3, experts)
    scores[1] = torch.nan
    route_experts(scores, torch.zeros(3, dtype=torch.int32), plan, top_k=2, normalize=True, tile_rows=16)
    assert plan.experts[[0, 1, 4, 5]].tolist() == scores[[0, 2]].topk(2).indices.flatten().tolist()
    assert all(0 <= expert < experts for expert in plan.experts.tolist())
    assert int(plan.tiles[:, 2].sum()) == 6
    assert plan.order.sort().values.tolist() == list(range(6))
    assert not any(behind[name][len(getattr(plan, name)) :].any() for name in behind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2, 4, dtype=torch.int32)}, "scores must be"),
        ({"entries": torch.zeros(3, dtype=torch.int32)}, r"entries must be int32 \[2\]"),
        ({"top_k": 5}, "top_k must be 1 to 4 experts, got 5"),
        ({"top_k": 1}, r"plan.experts must be int32 \[2\], got int32 \[4\]"),
        ({"tile_rows": 8}, "tile_rows must be one of"),
    ],
)
def test_a_wrong_argument_of_routing_is_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "scores": torch.zeros(2, 4),
        "entries": torch.zeros(2, dtype=torch.int32),
        "plan": ExpertPlan.allocate("cpu", 4, 4).narrow(4, 16),
        "top_k": 2,
        "normalize": True,
        "tile_rows": 16,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        route_experts(**arguments)


@pytest.mark.parametrize("arch", ARCHS.values(), ids=str)
@pytest.mark.parametrize("rows", TILE_ROWS)
def test_tiles_fit_shared_memory(arch: Arch, rows: int) -> None:
    for x_bytes, weight_bytes in ((2, 2), (2, 1), (4, 4), (4, 1)):
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
