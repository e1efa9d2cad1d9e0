"""Norm, rotation, quantisation and the writing of keys, values and queries, against the specification."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from airi.kernels import qkv_post as kernel
from airi.kernels import reference
from airi.kernels.arch import ARCHS
from airi.kernels.layout import GRANULE_BYTES, KvLayout
from tests.kernels.tolerances import RELATIVE, RELATIVE_QUANTISED, relative_error

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FP8, INT8 = torch.float8_e4m3fn, torch.int8
GRANULES = 96


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tokens of two sequences and padding between them, and everything that `qkv_post` is given of them."""

    dim: int = 64
    rot: int = 64
    group: int = 2
    kv_heads: int = 2
    dtype: torch.dtype = F32
    kv_dtype: torch.dtype = F32
    block_size: int = 16
    norm: bool = False
    layer_offset: int = 256

    @property
    def layout(self) -> KvLayout:
        return KvLayout.block_major(
            block_size=self.block_size, num_kv_heads=self.kv_heads, head_dim=self.dim, dtype=self.kv_dtype
        )

    def arguments(self, tokens: int = 11) -> dict[str, Any]:
        torch.manual_seed(self.dim + self.rot + self.group)
        heads = (self.group + 2) * self.kv_heads
        span = self.layout.layer_bytes // GRANULE_BYTES + 2
        first = torch.arange(tokens) < tokens // 2  # of the two sequences; the other's positions descend
        positions = torch.where(first, torch.arange(tokens), tokens + 4 - torch.arange(tokens))
        entries = span * (2 * (positions // self.block_size) + first.int())
        padding = torch.arange(tokens) % 4 == 2
        entries[padding], positions[padding] = -1, 10**6  # which is never read
        weights = torch.randn(2, self.dim) if self.norm else (None, None)
        return {
            "qkv": (3 * torch.randn(tokens, heads, self.dim)).to(self.dtype),
            "cos_sin": torch.randn(512, self.rot),
            "positions": positions.int(),
            "entries": entries.int(),
            "arena": torch.full((GRANULES * GRANULE_BYTES,), 0xFF, dtype=torch.uint8),
            "layout": self.layout,
            "q_out": torch.full((self.kv_heads, tokens, self.group, self.dim), torch.nan, dtype=self.dtype),
            "q_norm": weights[0],
            "k_norm": weights[1],
            "eps": 1e-5,
            "layer_offset": self.layer_offset,
        }


def both(case: Case, tokens: int = 11) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments after the kernel ran on them, and after the specification did."""
    found, expected = case.arguments(tokens), case.arguments(tokens)
    kernel.qkv_post(**found)
    reference.qkv_post(**expected)
    return found, expected


def written(arguments: dict[str, Any], layout: KvLayout) -> torch.Tensor:
    """Keys and values of the tokens that are no padding, [tokens, kv_heads, K|V, dim]."""
    found = []
    for entry, position in zip(arguments["entries"].tolist(), arguments["positions"].tolist(), strict=True):
        if entry < 0:
            continue
        where, slot = (arguments["arena"], entry, arguments["layer_offset"]), position % layout.block_size
        values = layout.block(*where)[:, :, slot].float()
        found.append(values * layout.scales(*where)[:, :, slot, None] if layout.is_quantised else values)
    return torch.stack(found)


PLAIN = [
    Case(),
    Case(dim=32, rot=32, group=1, dtype=F16, kv_dtype=F16),
    Case(dim=80, rot=80, group=5, dtype=BF16, kv_dtype=BF16),
    Case(dim=80, rot=20, group=7, kv_heads=1),
    Case(dim=96, rot=48, dtype=BF16, kv_dtype=BF16, block_size=4),
    Case(dim=128, rot=0, dtype=BF16, kv_dtype=BF16),
    Case(dim=128, rot=2, group=16, kv_heads=1, dtype=F16, kv_dtype=F16),
    Case(dim=256, rot=256, group=4, kv_heads=1, dtype=BF16, kv_dtype=BF16),
    Case(dtype=BF16, kv_dtype=F16),
]
QUANTISED = [
    Case(kv_dtype=FP8),
    Case(kv_dtype=INT8, dtype=BF16),
    Case(dim=80, rot=20, group=5, kv_dtype=FP8, dtype=BF16),
    Case(dim=96, rot=96, group=3, kv_dtype=INT8, block_size=4),
    Case(dim=256, rot=128, group=1, kv_heads=1, kv_dtype=FP8, dtype=F16),
]


@pytest.mark.parametrize("case", PLAIN + QUANTISED, ids=str)
def test_every_byte_is_that_of_the_specification(case: Case) -> None:
    found, expected = both(case)
    assert torch.equal(found["arena"], expected["arena"])
    assert torch.equal(found["q_out"], expected["q_out"])
    assert (found["arena"] == 0xFF).float().mean() > 0.5  # the rest is as it was
    assert not found["q_out"][:, found["entries"] < 0].any()


@pytest.mark.parametrize("kv_dtype", [FP8, INT8])
def test_halves_round_to_even(kv_dtype: torch.dtype) -> None:
    """Values half-way between any two that are stored, where the scale is 1."""
    codes = torch.arange(127 + (kv_dtype is INT8), dtype=torch.uint8)  # of positive values, in order
    grid = (codes.view(FP8) if kv_dtype is FP8 else codes).float()
    halves = torch.cat((grid, (grid[1:] + grid[:-1]) / 2))[:256]
    case = Case(dim=256, rot=2, group=1, kv_heads=1, kv_dtype=kv_dtype)
    found, expected = case.arguments(), case.arguments()
    for arguments in (found, expected):
        arguments["qkv"][:, 2] = torch.nn.functional.pad(halves, (0, 256 - len(halves)))
        arguments["qkv"][::3, 2] *= -1
    kernel.qkv_post(**found)
    reference.qkv_post(**expected)
    assert torch.equal(found["arena"], expected["arena"])
    assert torch.equal(written(found, case.layout)[0, 0, 1, : len(grid)].abs(), grid)


@pytest.mark.parametrize("tokens", [1, 600])
def test_one_token_and_more_than_a_program_has(tokens: int) -> None:
    case = Case(dim=32, rot=16, group=1, kv_heads=1, kv_dtype=INT8, block_size=64)
    found, expected = both(case, tokens)
    assert torch.equal(found["q_out"], expected["q_out"])


@pytest.mark.parametrize(
    "case",
    [
        Case(norm=True),
        Case(norm=True, dim=80, rot=20, group=5, dtype=BF16, kv_dtype=BF16),
        Case(norm=True, dim=128, rot=128, group=4, kv_heads=1, dtype=F16, kv_dtype=INT8),
    ],
    ids=str,
)
def test_heads_are_normed_before_they_are_rotated(case: Case) -> None:
    found, expected = both(case)
    assert relative_error(found["q_out"], expected["q_out"]) <= RELATIVE[case.dtype]
    stored = [written(arguments, case.layout) for arguments in (found, expected)]
    tolerance = RELATIVE_QUANTISED if case.layout.is_quantised else RELATIVE[case.kv_dtype]
    assert relative_error(*stored) <= tolerance


@pytest.mark.parametrize("kv_dtype", [F32, FP8])
def test_offsets_pass_two_to_the_31(kv_dtype: torch.dtype) -> None:
    """The entry's by 4,096 and the layer's; memory that nobody touches costs nothing."""
    case = Case(kv_dtype=kv_dtype, layer_offset=2**31 + 4096)
    far, found, expected = 2**31 // GRANULE_BYTES + 3, case.arguments(), case.arguments()
    found["entries"] += (found["entries"] >= 0) * far
    found["arena"] = torch.empty(2**32 + GRANULES * GRANULE_BYTES, dtype=torch.uint8)
    start = far * GRANULE_BYTES + case.layer_offset
    home = found["arena"][start : start + GRANULES // 2 * GRANULE_BYTES].fill_(0xFF)
    kernel.qkv_post(**found)
    reference.qkv_post(**expected | {"layer_offset": 0})
    assert torch.equal(home, expected["arena"][: len(home)])


def test_a_layout_with_tokens_outside_of_heads_gets_the_same_bits() -> None:
    case = Case(dtype=F16, kv_dtype=F16)
    row = case.dim * 2
    outside = dataclasses.replace(
        case.layout, head_stride=2 * row, kv_stride=row, token_stride=2 * row * case.kv_heads
    )
    found, expected = case.arguments(), case.arguments()
    kernel.qkv_post(**found)
    kernel.qkv_post(**expected | {"layout": outside})
    assert torch.equal(written(found, case.layout), written(expected, outside))


def test_queries_may_lie_in_a_larger_buffer_and_rows_apart() -> None:
    case = Case()
    found, expected = case.arguments(), case.arguments()
    tokens, heads, dim = found["qkv"].shape
    wide = torch.full((tokens, heads * dim + 32), torch.nan)
    wide[:, : heads * dim] = found["qkv"].flatten(1)
    found["qkv"] = wide[:, : heads * dim].unflatten(1, (heads, dim))
    buffer = torch.full((2, 40, 2, dim), torch.nan)
    found["q_out"] = buffer[:, :tokens]
    kernel.qkv_post(**found)
    reference.qkv_post(**expected)
    assert torch.equal(buffer[:, :tokens], expected["q_out"])
    assert torch.isnan(buffer[:, tokens:]).all()


def test_an_empty_batch_is_no_work() -> None:
    arguments = Case().arguments(0)
    kernel.qkv_post(**arguments)
    assert (arguments["arena"] == 0xFF).all()


def test_few_tokens_are_cut_finely_and_many_share_their_angles() -> None:
    shape = {"heads": 48, "half": 64, "itemsize": 2, "arch": ARCHS["sm_90"]}
    few = kernel.qkv_post_tiles(tokens=256, **shape)
    assert (few.block_tokens, few.heads_per_program, few.num_warps) == (4, 1, 1)
    many = kernel.qkv_post_tiles(tokens=8192, **shape)
    assert (many.block_tokens, many.heads_per_program, many.num_warps) == (16, 8, 4)
    for half in (16, 40, 48, 64, 128):
        tiles = kernel.qkv_post_tiles(tokens=8192, heads=48, half=half, itemsize=2, arch=ARCHS["gfx942"])
        padded = 2 ** (half - 1).bit_length()
        assert tiles.block_tokens * padded == tiles.num_warps * 64 * 8  # 16 bytes a thread


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(11, 7, 64)}, r"heads of qkv must be a multiple of 2 from 6, got 7"),
        ({"qkv": torch.zeros(11, 8, 32)}, r"qkv must be .* \[any, any, 64\], got float32 \[11, 8, 32\]"),
        ({"qkv": torch.zeros(11, 8, 64, dtype=torch.float64)}, "qkv must be float32 or float16 or bfloat16"),
        ({"cos_sin": torch.zeros(64, 31)}, "width of cos_sin must be an even number up to 64, got 31"),
        ({"cos_sin": torch.zeros(64, 66)}, "width of cos_sin must be an even number up to 64, got 66"),
        ({"positions": torch.zeros(11, dtype=torch.int64)}, r"positions must be int32 \[11\], got int64"),
        ({"entries": torch.zeros(10, dtype=torch.int32)}, r"entries must be int32 \[11\], got int32 \[10\]"),
        ({"entries": torch.zeros(11, dtype=torch.int32, device="meta")}, "entries must be on cpu, got meta"),
        ({"arena": torch.zeros(4096)}, "arena must be uint8"),
        ({"layer_offset": 6}, "layer_offset must be a multiple of 4 from 0, got 6"),
        (
            {"q_out": torch.zeros(2, 11, 3, 64)},
            r"q_out must be .* \[2, 11, 2, 64\], got float32 \[2, 11, 3, 64\]",
        ),
        ({"q_norm": torch.ones(32)}, r"q_norm must be float32 \[64\], got float32 \[32\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.qkv_post(**Case().arguments() | change)
