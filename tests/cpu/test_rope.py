"""Rotation, norms and KV writes on CPUs against the specification."""

from __future__ import annotations

import pytest
import torch

from airi._core import cpu
from airi.kernels import reference
from tests.cpu.paged_case import DTYPES, GRANULE

BLOCK = 16


class Step:
    """A decode row and a chunk across blocks, with one arena for each of two implementations."""

    def __init__(self, *, head_dim: int, rot_dim: int, dtype: torch.dtype, tokens: int = 40) -> None:
        rng = torch.Generator().manual_seed(head_dim + rot_dim)
        self.q_heads, self.kv_heads = 6, 2
        self.layout = reference.KvLayout.block_major(
            block_size=BLOCK, num_kv_heads=self.kv_heads, head_dim=head_dim, dtype=dtype
        )
        self.granules = -(-2 * self.layout.layer_bytes // GRANULE)
        table = torch.randperm(12, generator=rng).to(torch.int32).reshape(2, 6) * self.granules
        self.batch = reference.PagedBatch(
            query_start=torch.tensor([0, 1, 1 + tokens], dtype=torch.int32),
            seq_lens=torch.tensor([33, tokens + 21], dtype=torch.int32),
            slots=torch.tensor([1, 0], dtype=torch.int32),
            block_table=table,
        )
        width = self.q_heads + 2 * self.kv_heads
        self.qkv = torch.randn(1 + tokens, width, head_dim, generator=rng)
        self.positions = torch.tensor([32, *range(21, tokens + 21)], dtype=torch.int32)
        angles = torch.rand(128, rot_dim // 2, generator=rng) * 6
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
        self.q_norm, self.k_norm = torch.rand(2, head_dim, generator=rng)
        size = 12 * self.granules * GRANULE
        self.arenas = [torch.full((size,), 0xFF, dtype=torch.uint8) for _ in range(2)]

    def run(self, *, norm: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries by the kernel and by the specification; each writes into its own arena."""
        layout, batch, offset = self.layout, self.batch, self.layout.layer_bytes
        q = torch.full((batch.tokens, self.q_heads, layout.head_dim), torch.nan, dtype=layout.dtype)
        cpu.rope_kv_write(
            cpu.PagedBatch(
                rows=2,
                tokens=batch.tokens,
                query_start=batch.query_start.data_ptr(),
                seq_lens=batch.seq_lens.data_ptr(),
                slots=batch.slots.data_ptr(),
                block_table=batch.block_table.data_ptr(),
                table_stride=batch.block_table.shape[1],
            ),
            cpu.KvLayout(
                base=self.arenas[0].data_ptr(),
                block_size=BLOCK,
                num_kv_heads=self.kv_heads,
                head_dim=layout.head_dim,
                dtype=DTYPES[layout.dtype],
                head_stride=layout.head_stride,
                kv_stride=layout.kv_stride,
                token_stride=layout.token_stride,
            ),
            offset,
            self.qkv.data_ptr(),
            self.positions.data_ptr(),
            self.cos_sin.data_ptr(),
            self.cos_sin.shape[1],
            q.data_ptr(),
            self.q_heads,
            self.q_norm.data_ptr() if norm else 0,
            self.k_norm.data_ptr() if norm else 0,
            1e-5,
        )
        expected = reference.rope_kv_write(
            self.qkv,
            self.cos_sin,
            self.positions,
            self.arenas[1],
            layout,
            batch,
            q_heads=self.q_heads,
            layer_offset=offset,
            q_norm=self.q_norm if norm else None,
            k_norm=self.k_norm if norm else None,
            eps=1e-5,
        )
        return q, expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("head_dim", "rot_dim"), [(64, 64), (80, 32), (8, 8), (256, 256), (96, 0), (72, 36)])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normed"])
def test_rope_kv_write_matches_the_specification(
    isa: str, *, dtype: torch.dtype, head_dim: int, rot_dim: int, norm: bool
) -> None:
    step = Step(head_dim=head_dim, rot_dim=rot_dim, dtype=dtype)
    q, expected = step.run(norm=norm)
    # Of bfloat16 one unit in the last place, where float32 rounding tips it over.
    tolerance = {"rtol": 2e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-6}
    torch.testing.assert_close(q, expected, **tolerance)
    mine, theirs = (arena.view(dtype) for arena in step.arenas)
    # Bytes that no token owns keep their poison; all others agree.
    torch.testing.assert_close(mine, theirs, equal_nan=True, **tolerance)
    assert mine.isfinite().sum() == step.batch.tokens * 2 * step.kv_heads * head_dim


def test_a_token_has_the_same_bits_alone_and_in_a_chunk() -> None:
    whole = Step(head_dim=64, rot_dim=64, dtype=torch.float32, tokens=40)
    q, _ = whole.run(norm=True)
    single = Step(head_dim=64, rot_dim=64, dtype=torch.float32, tokens=1)
    single.cos_sin, single.q_norm, single.k_norm = whole.cos_sin, whole.q_norm, whole.k_norm
    single.qkv[1], single.positions[1] = whole.qkv[23], whole.positions[23]
    alone, _ = single.run(norm=True)
    assert torch.equal(alone[1], q[23])


def test_arguments_out_of_range_are_refused() -> None:
    step = Step(head_dim=64, rot_dim=64, dtype=torch.float32)
    step.cos_sin = torch.zeros(128, 66)
    with pytest.raises(ValueError, match="rot_dim is 66"):
        step.run(norm=False)
    step.cos_sin = torch.zeros(128, 64)
    step.qkv = torch.empty(0)
    with pytest.raises(ValueError, match="must be addresses"):
        step.run(norm=False)
