"""Where keys and values lie."""

from __future__ import annotations

import pytest
import torch

from airi.kernels.layout import GRANULE_BYTES, KvLayout
from airi.kernels.reference import PagedBatch, gather_kv, quantise, write_kv

TABLE = torch.tensor([[1, 0]], dtype=torch.int32)


def one_row(length: int) -> PagedBatch:
    return PagedBatch(
        query_start=torch.tensor([0, length], dtype=torch.int32),
        seq_lens=torch.tensor([length], dtype=torch.int32),
        slots=torch.zeros(1, dtype=torch.int32),
        block_table=TABLE,
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("head_dim", [32, 80])
def test_quantised_keys_and_values_are_read_back_within_half_a_step(
    dtype: torch.dtype, head_dim: int
) -> None:
    layout = KvLayout.block_major(block_size=8, num_kv_heads=2, head_dim=head_dim, dtype=dtype)
    arena = torch.full((2 * GRANULE_BYTES,), 0xFF, dtype=torch.uint8)
    batch = one_row(11)
    written = torch.randn(2, 11, 2, head_dim) * torch.logspace(-3, 3, 11)[None, :, None, None]
    written[:, 4] = 0
    write_kv(written[0], written[1], arena, layout, batch)
    for found, expected in zip(gather_kv(arena, layout, batch, 0), written, strict=True):
        peak = expected.abs().amax(-1, keepdim=True)
        step = peak / 127 / 2 if dtype is torch.int8 else torch.maximum(expected.abs() / 16, peak * 2.0**-19)
        assert bool(((found.transpose(0, 1) - expected).abs() <= step * 1.01).all())


def test_scales_lie_behind_the_elements_of_their_head() -> None:
    layout = KvLayout.block_major(block_size=8, num_kv_heads=2, head_dim=32, dtype=torch.int8)
    assert (layout.scale_offset, layout.head_stride) == (2 * 8 * 32, 2 * 8 * 32 + 2 * 8 * 4)
    arena = torch.zeros(2 * GRANULE_BYTES, dtype=torch.uint8)
    write_kv(torch.full((1, 2, 32), 127.0), torch.full((1, 2, 32), 254.0), arena, layout, one_row(1))
    at = (
        GRANULE_BYTES + layout.head_stride + layout.scale_offset
    )  # of the second head in the block at entry 1
    assert arena.view(torch.float32)[at // 4].item() == 1.0
    assert arena.view(torch.float32)[at // 4 + 8].item() == 2.0


def test_zeros_quantise_to_zeros_with_a_scale_of_one() -> None:
    stored, scales = quantise(torch.zeros(3, 16), torch.int8)
    assert not stored.any()
    assert scales.tolist() == [1.0] * 3


@pytest.mark.parametrize("change", [{"scale_offset": 0}, {"scale_offset": 513}, {"head_stride": 600 + 2}])
def test_a_quantised_layout_needs_room_for_scales(change: dict[str, int]) -> None:
    values = {"head_stride": 600, "scale_offset": 512} | change
    with pytest.raises(ValueError, match="scale_offset"):
        KvLayout(
            block_size=8,
            num_kv_heads=2,
            head_dim=32,
            dtype=torch.int8,
            kv_stride=256,
            token_stride=32,
            **values,
        )
