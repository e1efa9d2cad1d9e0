"""The specification of the kernels against dense formulas and published vectors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from airi.kernels.attention_plan import AttentionPlan, DecodeWorkspace
from airi.kernels.reference import (
    GRANULE_BYTES,
    KvLayout,
    PagedBatch,
    gather_kv,
    gumbel_noise,
    keep_mask,
    paged_attention,
    paged_decode,
    penalise_row,
    philox,
    plan_attention,
    rms_norm,
    rope,
    rope_kv_write,
    sample_row,
    write_kv,
)

LAYER_OFFSET = 512


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def small_batch() -> PagedBatch:
    """A decode row of 9 keys and a chunk of 3 queries that end 5 keys; blocks of 4, out of order."""
    table = torch.tensor([[0, 0, 0], [1, 4, 0], [3, 0, 2]], dtype=torch.int32)
    return PagedBatch(query_start=int32(0, 1, 4), seq_lens=int32(9, 5), slots=int32(2, 1), block_table=table)


def layouts(dtype: torch.dtype) -> list[KvLayout]:
    """The default order, and tokens outside of heads."""
    inside = KvLayout.block_major(block_size=4, num_kv_heads=2, head_dim=8, dtype=dtype)
    row = 8 * dtype.itemsize
    outside = dataclasses.replace(inside, head_stride=2 * row, kv_stride=row, token_stride=4 * row)
    return [inside, outside]


def filled(
    layout: KvLayout, batch: PagedBatch
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A poisoned arena with random keys and values for every row, and those, [kv_heads, keys, dim]."""
    arena = torch.full((5 * GRANULE_BYTES,), 0xFF, dtype=torch.uint8)  # NaN in every float dtype
    dense = []
    for row in range(2):
        length = int(batch.seq_lens[row])
        whole = PagedBatch(
            query_start=int32(0, length),
            seq_lens=batch.seq_lens[row : row + 1],
            slots=batch.slots[row : row + 1],
            block_table=batch.block_table,
        )
        k, v = torch.randn(2, length, 2, 8).to(layout.dtype)
        write_kv(k, v, arena, layout, whole, layer_offset=LAYER_OFFSET)
        dense.append((k.transpose(0, 1), v.transpose(0, 1)))
    return arena, dense


def dense_attention(
    q: torch.Tensor,
    batch: PagedBatch,
    dense: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    outputs = []
    for row, (k, v) in enumerate(dense):
        part = q[int(batch.query_start[row]) : int(batch.query_start[row + 1])].double()
        group = q.shape[1] // k.shape[0]
        k, v = k.double().repeat_interleave(group, 0), v.double().repeat_interleave(group, 0)
        scores = torch.einsum("qhd,hkd->hqk", part, k) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.tensor(list(batch.positions(row)))[:, None] - torch.arange(k.shape[1])
        hidden = (distance < 0) | (distance >= (window or 10**9))
        outputs.append(torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v)
    return torch.cat([o.transpose(0, 1) for o in outputs])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (3, 0.0), (1, 0.0), (0, 2.0), (4, 1.0)])
@pytest.mark.parametrize("order", [0, 1])
def test_paged_attention_is_dense_attention(
    dtype: torch.dtype, window: int, softcap: float, order: int
) -> None:
    layout, batch = layouts(dtype)[order], small_batch()
    arena, dense = filled(layout, batch)
    q = torch.randn(4, 6, 8).to(dtype)
    options: dict[str, Any] = {"scale": 0.4, "window": window, "softcap": softcap}
    out = paged_attention(
        q, arena, layout, batch, layer_offset=LAYER_OFFSET, accumulate=torch.float64, **options
    )
    expected = dense_attention(q, batch, dense, **options)
    tolerance = 1e-6 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_decoding_is_attention_of_rows_with_one_query() -> None:
    layout, batch = layouts(torch.float32)[0], small_batch()
    arena, dense = filled(layout, batch)
    rows = dataclasses.replace(batch, query_start=int32(0, 1, 2))
    plan = AttentionPlan.allocate("cpu", 2, 2, 0)
    plan_attention(rows.query_start, rows.seq_lens, plan, num_kv_heads=2, tile_queries=1, num_sms=132)
    workspace = DecodeWorkspace.allocate("cpu", 2, 6, 8)
    q = torch.randn(2, 6, 8)
    out, lse = torch.empty_like(q), torch.empty(2, 6)
    paged_decode(
        q.view(2, 2, 3, 8).transpose(0, 1),
        arena,
        layout,
        batch.block_table,
        batch.slots,
        rows.query_start,
        batch.seq_lens,
        plan,
        workspace,
        out,
        scale=1.0,
        layer_offset=LAYER_OFFSET,
        lse=lse,
    )
    for row, (k, v) in enumerate(dense):
        scores = torch.einsum("hd,hkd->hk", q[row], k.repeat_interleave(3, 0))
        expected = torch.einsum("hk,hkd->hd", torch.softmax(scores, -1), v.repeat_interleave(3, 0))
        torch.testing.assert_close(out[row], expected)
        torch.testing.assert_close(lse[row], scores.logsumexp(-1))


def test_the_specification_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import airi.kernels.reference"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_keys_and_values_are_written_where_they_are_read() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in layouts(dtype):
            batch = small_batch()
            arena, dense = filled(layout, batch)
            for row in range(2):
                k, v = gather_kv(arena, layout, batch, row, 2, layer_offset=LAYER_OFFSET)
                assert torch.equal(k, dense[row][0][:, 2:])
                assert torch.equal(v, dense[row][1][:, 2:])


def test_rope_rotates_pairs_of_halves_and_leaves_the_rest() -> None:
    positions = int32(0, 3)
    angles = torch.tensor([1.0, 0.1])[None] * torch.arange(5)[:, None]
    table = torch.cat((angles.cos(), angles.sin()), 1)
    x = torch.randn(2, 3, 6)
    turned = rope(x, table, positions)
    assert torch.equal(turned[0], x[0])
    as_complex = torch.complex(x[1, :, :2], x[1, :, 2:4]) * torch.polar(torch.ones(2), angles[3])
    torch.testing.assert_close(turned[1, :, :2], as_complex.real)
    torch.testing.assert_close(turned[1, :, 2:4], as_complex.imag)
    assert torch.equal(turned[:, :, 4:], x[:, :, 4:])
    assert torch.equal(rope(x, torch.empty(5, 0), positions), x)


def test_rope_kv_write_norms_rotates_and_stores() -> None:
    layout, batch = layouts(torch.float32)[0], small_batch()
    arena, _ = filled(layout, batch)
    qkv, positions = torch.randn(4, 3 + 4, 8), int32(8, 2, 3, 4)
    table = torch.randn(9, 4)
    q_norm, k_norm = torch.randn(8), torch.randn(8)
    q = rope_kv_write(
        qkv, table, positions, arena, layout, batch, q_heads=3, q_norm=q_norm, k_norm=k_norm, eps=1e-5
    )
    assert torch.equal(q, rope(rms_norm(qkv[:, :3], q_norm, 1e-5), table, positions))
    k, v = gather_kv(arena, layout, batch, 1, 2)
    assert torch.equal(
        k.transpose(0, 1), rope(rms_norm(qkv[1:, 3:5], k_norm, 1e-5), table, positions[0:][1:])
    )
    assert torch.equal(v.transpose(0, 1), qkv[1:, 5:])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert philox(np.array([counter], np.uint32), key).tolist() == [list(words)]


def test_noise_is_gumbel_distributed_and_each_token_has_its_own() -> None:
    noise = gumbel_noise(7, 3, 200_001)
    assert abs(noise.mean() - np.euler_gamma) < 0.01
    assert abs(noise.var() - np.pi**2 / 6) < 0.02
    assert np.array_equal(gumbel_noise(7, 3, 50), noise[:50])
    assert not np.isclose(gumbel_noise(7, 4, 50), noise[:50]).any()
    assert not np.isclose(gumbel_noise(7 + 2**32, 3, 50), noise[:50]).any()


def test_filters_keep_what_their_definitions_say() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.3, 0.15, 0.05]))
    kept: list[tuple[dict[str, Any], list[int]]] = [
        ({"top_k": 2}, [1, 2]),
        ({"top_p": 0.69}, [1, 2]),
        ({"top_p": 0.71}, [1, 2, 3]),
        ({"top_p": 0.0}, [1]),
        ({"min_p": 0.3}, [1, 2, 3]),
        ({"top_k": 3, "top_p": 0.8}, [1, 2]),
        ({}, [0, 1, 2, 3, 4]),
    ]
    for options, expected in kept:
        assert np.flatnonzero(keep_mask(logits, temperature=1.0, **options)).tolist() == expected
    assert sample_row(logits, temperature=0.0) == 1
    assert sample_row(logits, temperature=3.0, top_k=1) == 1


def test_penalties_touch_seen_tokens_only() -> None:
    logits = np.array([2.0, -2.0, 2.0, 1.0])
    out = penalise_row(
        logits,
        np.array([0, 1], np.int32),
        np.array([2, 2], np.int32),
        repetition=2.0,
        presence=0.5,
        frequency=0.25,
    )
    assert out.tolist() == [1.0, -4.0, 1.0 - 0.5 - 0.5, 1.0]


def test_bad_arguments_name_themselves() -> None:
    layout, batch = layouts(torch.float32)[0], small_batch()
    arena = torch.zeros(5 * GRANULE_BYTES, dtype=torch.uint8)
    q = torch.zeros(4, 6, 8)
    with pytest.raises(ValueError, match=r"token_stride must be .*, got 30"):
        dataclasses.replace(layout, token_stride=30)
    with pytest.raises(ValueError, match="query_start must ascend"):
        dataclasses.replace(batch, query_start=int32(0, 4, 3))
    with pytest.raises(ValueError, match="seq_lens must be at least"):
        dataclasses.replace(batch, seq_lens=int32(9, 2))
    with pytest.raises(ValueError, match="slots must lie"):
        dataclasses.replace(batch, slots=int32(0, 3))
    with pytest.raises(ValueError, match=r"slots must be int32 \[2\]"):
        dataclasses.replace(batch, slots=torch.zeros(2))
    with pytest.raises(ValueError, match=r"q heads must be .*, got 5"):
        paged_attention(q[:, :5], arena, layout, batch, scale=1.0)
    with pytest.raises(ValueError, match=r"q must be float32 \[4, any, 8\]"):
        paged_attention(q[:2], arena, layout, batch, scale=1.0)
    with pytest.raises(ValueError, match=r"window must be .*, got -1"):
        paged_attention(q, arena, layout, batch, scale=1.0, window=-1)
    with pytest.raises(ValueError, match=r"softcap must be .*, got -1"):
        paged_attention(q, arena, layout, batch, scale=1.0, softcap=-1.0)
    with pytest.raises(ValueError, match="even width"):
        rope(q, torch.zeros(9, 3), int32(0, 0, 0, 0))
    with pytest.raises(ValueError, match="neither NaN"):
        sample_row(np.array([np.nan, 0.0]), temperature=1.0)
