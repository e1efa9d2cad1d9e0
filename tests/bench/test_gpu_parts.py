"""Pools, the float64 results and the random model of the GPU benches agree with what the project says elsewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from airi.engine.backends import LoadOptions
from airi.engine.loader import open_model
from airi.kernels import reference
from airi.kernels.layout import GRANULE_BYTES
from benches.gpu import oracle
from benches.gpu.bench import Wrong
from benches.gpu.checks import Checks
from benches.gpu.filters import FILTERS, NEAR, Filters, shortfall
from benches.gpu.pool import Heads, Pool, make_batch, random_queries, zipf_lengths
from benches.gpu.random_model import TOY, RandomCheckpoint, random_folder
from benches.gpu.speed_layout import PIECE, starts_of

HEADS = Heads(kv_heads=2, group=3, head_dim=32)


def a_pool(dtype: torch.dtype = torch.float32, **more: object) -> Pool:
    pool = Pool(torch.zeros(1 << 20, dtype=torch.uint8), HEADS, dtype=dtype, block_size=16, layers=2, **more)  # type: ignore[arg-type]
    pool.fill(seed=1)
    return pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (7, 3.0)])
def test_float64_results_are_those_of_the_specification(
    dtype: torch.dtype, window: int, softcap: float
) -> None:
    pool = a_pool(dtype)
    batch = make_batch(pool, (1, 40, 17), (1, 3, 17), seed=2, slots=5)
    q = random_queries(batch, HEADS, torch.float64, torch.device("cpu"), seed=3)
    options = {"scale": 0.2, "layer_offset": pool.layer_offset(1), "window": window, "softcap": softcap}
    found, _, tokens = oracle.attention(q, pool.arena, pool.layout, batch, **options)  # type: ignore[arg-type]
    rows = reference.PagedBatch(
        query_start=batch.query_start,
        seq_lens=batch.seq_lens,
        slots=batch.slots,
        block_table=batch.block_table,
    )
    flat = q.transpose(0, 1).reshape(batch.tokens, HEADS.q_heads, HEADS.head_dim)
    expected = reference.paged_attention(
        flat, pool.arena, pool.layout, rows, accumulate=torch.float64, **options
    )
    assert tokens.tolist() == list(range(batch.tokens))
    # The specification multiplies stored values by their scales in float32.
    limit = 1e-5 if pool.layout.is_quantised else 1e-9
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


def test_heads_are_rotated_as_the_specification_rotates_them() -> None:
    x = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([0, 3, 1, 7, 2], dtype=torch.int32)
    for rot_dim in (0, 8, 16):
        turns = torch.arange(8)[:, None] * torch.linspace(1, 0.1, rot_dim // 2)
        cos_sin = torch.cat((turns.cos(), turns.sin()), 1)
        expected = reference.rope(x, cos_sin, positions)
        torch.testing.assert_close(oracle.rotated(x, cos_sin, positions).float(), expected)


def test_both_orders_hold_the_same_units_without_overlap() -> None:
    pool = a_pool()
    blocks = torch.arange(pool.blocks)
    for order in (pool, pool.with_order("layer-major")):
        starts = [
            int(entry) * GRANULE_BYTES + order.layer_offset(layer)
            for entry in order.entries(blocks)
            for layer in range(order.layers)
        ]
        assert sorted(starts) == list(range(0, pool.nbytes, pool.unit))


def test_quantised_pools_hold_finite_values_and_scales() -> None:
    pool = a_pool(torch.float8_e4m3fn)
    for entry in pool.entries(torch.arange(pool.blocks)).tolist():
        for layer in range(pool.layers):
            block = pool.layout.block(pool.arena, entry, pool.layer_offset(layer))
            scales = pool.layout.scales(pool.arena, entry, pool.layer_offset(layer))
            values = block.float() * scales[..., None]
            assert bool(values.isfinite().all())
            assert 0.8 < float(values.std()) < 1.2


def test_rows_get_blocks_of_their_own_from_all_over_the_pool() -> None:
    pool = a_pool()
    batch = make_batch(pool, (40, 0, 33), seed=1, slots=6)
    assert batch.query_lens == (1, 0, 1)
    assert batch.query_start.tolist() == [0, 1, 1, 2]
    used = [batch.block_table[batch.slots[r].long(), :3].tolist() for r in (0, 2)]
    assert len({*used[0], *used[1]}) == 6
    with pytest.raises(ValueError, match="lens need"):
        make_batch(pool, (16 * pool.blocks + 1,), seed=1)


def test_skewed_lengths_have_few_long_rows_and_fit() -> None:
    lens = zipf_lengths(64, 128, 65536, seed=4, most=600_000)
    assert len(lens) == 64
    assert sum(lens) <= 610_000
    assert sorted(lens)[32] < sum(lens) / 64
    assert max(lens) > 8 * sorted(lens)[32]


def test_both_layouts_read_the_same_number_of_runs_inside_the_span() -> None:
    span, layer, run = 64 << 20, 256 << 10, 256 << 10
    near = starts_of(span, layer, run, seed=1) * PIECE
    far = starts_of(span, 8 << 20, run, seed=1) * PIECE
    assert len(near) == len(far) == (span // (8 << 20)) * 32 * 8
    for starts in (near, far):
        assert len(set(starts.tolist())) == len(starts)
        assert int(starts.max()) + (32 << 10) <= span
    first_layer = len(near) // 32
    assert int(near[:first_layer].max() - near[:first_layer].min()) < span // 32
    assert int(far[:first_layer].max() - far[:first_layer].min()) > span // 2


def test_what_differs_is_said_and_nothing_is_not_finite() -> None:
    checks = Checks()
    checks.near("right", torch.ones(3), torch.ones(3), 1e-3)
    assert checks.rows() == [{"variant": "right", "error": 0.0, "tolerance": 1e-3}]
    checks.near("wrong", torch.tensor([1.0, float("nan")]), torch.ones(2), 1e-3)
    checks.within("off", torch.tensor([1.0]), torch.tensor([3.0]), 1e-3)
    checks.same_bits("bits", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    with pytest.raises(
        Wrong, match=r"wrong: error inf > 0\.001; off: off by 2 > 0\.001; bits: 1 bytes differ"
    ):
        checks.rows()


@pytest.mark.parametrize("filters", FILTERS)
def test_the_specifications_own_token_falls_short_of_nothing(filters: Filters) -> None:
    logits = np.random.default_rng(1).standard_normal(300).astype(np.float32) * 3
    chosen = [
        reference.sample_row(
            logits,
            temperature=filters.temperature,
            top_k=filters.top_k,
            top_p=filters.top_p,
            min_p=filters.min_p,
            seed=7,
            draw=draw,
        )
        for draw in range(20)
    ]
    assert all(shortfall(logits, token, filters, 7, draw) <= NEAR for draw, token in enumerate(chosen))
    worst = int(np.argmin(logits))
    assert shortfall(logits, worst, filters, 7, 0) > NEAR


def test_a_token_that_filters_drop_is_infinitely_short() -> None:
    logits = np.arange(10, dtype=np.float32)
    assert shortfall(logits, 3, Filters(top_k=2), 1, 0) == float("inf")
    assert shortfall(logits, 0, Filters(temperature=0.0), 1, 0) == 9


def test_a_random_model_is_opened_as_a_checkpoint() -> None:
    with random_folder(TOY) as folder:
        opened = open_model(folder, LoadOptions(), on_device=True)
    assert opened.info.num_layers == TOY.layers
    assert opened.info.num_parameters == RandomCheckpoint(TOY).num_elements
    layer = opened.weights.layer(1)
    assert layer.attention_norm is not None
    assert np.all(layer.attention_norm == 1)
    values = layer.output.blocks[0].float32()
    assert 0.01 < float(values.std()) < 0.02
    assert not Path(folder).exists()


def test_every_kernel_that_is_launched_is_checked() -> None:
    root = Path(__file__).resolve().parents[2]
    checks = "".join(
        path.read_text()
        for path in (root / "benches" / "gpu").glob("*.py")
        if path.stem.startswith("check_") or path.stem == "attend"
    )
    launchers = {
        node.name
        for path in (root / "kernels").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        if any(isinstance(n, ast.Name) and n.id == "launch_guard" for n in ast.walk(node))
    }
    assert {"paged_decode", "qkv_post", "gather_logprobs", "fill_tokens"} <= launchers
    # The last two are what paged_decode and paged_prefill launch.
    inner = {"launch_guard", "combine_partials", "launch"}
    assert {name for name in launchers if not re.search(rf"\b{name}\b", checks)} <= inner
