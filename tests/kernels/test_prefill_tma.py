"""The prefill kernel that reads by tensor descriptors, against dense attention in float64."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import pytest
import torch

from airi.kernels import prefill_tma
from airi.kernels.arch import ARCHS
from airi.kernels.layout import KvLayout
from airi.kernels.prefill import prefill_tiles

from .paged import Case, make_case
from .prefills import check, chunk, run
from .tolerances import RELATIVE, relative_error

HALF = torch.float16


def make(rows: list[tuple[int, int]], **shape: Any) -> Case:
    """Whole tiles are read: what was never written is finite."""
    return make_case(rows, finite=True, **({"dtype": HALF, "kv_heads": 1} | shape))


@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
def test_every_head_dim_of_a_power_of_two_agrees_with_dense_attention(head_dim: int) -> None:
    check(make([(66, 130), (1, 3)], head_dim=head_dim), variant="tma")


@pytest.mark.parametrize("group", [1, 3, 4, 5, 7, 8, 16])
def test_every_group_agrees_with_dense_attention(group: int) -> None:
    queries = 128 // group
    # The query behind the first tile, whose rows the tile's last program rows are, sees one tile of 64 keys more.
    check(make([(queries + 2, -(-queries // 64) * 64 + 2), (2, 9)], head_dim=32, group=group), variant="tma")


@pytest.mark.parametrize("block_size", [64, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_blocks_of_whole_tiles_agree_with_dense_attention(block_size: int, dtype: torch.dtype) -> None:
    check(make([(20, 300), (5, 5)], head_dim=32, block_size=block_size, dtype=dtype), variant="tma")


@pytest.mark.parametrize("seed", range(3))
def test_ragged_rows_agree_with_dense_attention(seed: int) -> None:
    rows = [(2, 2), (1, 5), (63, 63), (64, 64), (65, 65), (0, 0), (2, 128), (3, 129)]
    check(make(rows, head_dim=32, kv_heads=2, seed=seed, order=seed), variant="tma")


@pytest.mark.parametrize(
    "options", [{"window": 1}, {"window": 64}, {"window": 100, "softcap": 3.0}, {"softcap": 3.0}]
)
def test_windows_and_caps_agree_with_dense_attention(options: dict[str, Any]) -> None:
    check(make([(70, 200), (17, 17)], head_dim=32), variant="tma", **options)


@pytest.mark.parametrize("block_size", [64, 128])
def test_a_window_may_begin_with_the_last_key_of_a_tile(block_size: int) -> None:
    """Key 127 of tiles of 64 and 128."""
    check(make([(3, 139)], head_dim=32, block_size=block_size), variant="tma", window=10)


def test_tiles_before_the_window_are_not_read() -> None:
    case = make([(8, 300)], head_dim=32)
    expected, _ = case.expected(scale=1.0, window=100)
    for entry in case.batch.block_table[1, :3].tolist():  # keys 0 to 191, of which 193 is the first seen
        case.layout.block(case.arena, entry, case.layer_offset).fill_(math.nan)
    out, _ = run(case, variant="tma", scale=1.0, window=100)
    assert relative_error(out, expected) <= RELATIVE[HALF]


def test_it_gives_what_the_pointer_kernel_gives() -> None:
    case = make([(70, 200), (17, 17)], head_dim=64, group=3)
    by_tma, by_pointer = run(case, variant="tma"), run(case, variant="pointer")
    assert relative_error(by_tma[0], by_pointer[0]) <= RELATIVE[HALF]
    assert (by_tma[1] - by_pointer[1]).abs().max() <= 1e-5


def test_neither_the_order_of_layers_nor_of_blocks_changes_a_bit() -> None:
    shape: dict[str, Any] = {"rows": [(20, 150), (9, 31)], "head_dim": 32, "kv_heads": 2}
    outs = [
        run(make(**shape, layer_major=major, order=order), variant="tma")
        for major, order in ((False, 0), (False, 1), (True, 0))
    ]
    assert all(torch.equal(out, outs[0][0]) and torch.equal(lse, outs[0][1]) for out, lse in outs)


@pytest.mark.parametrize("options", [{}, {"window": 77}])
def test_a_prompt_in_whole_query_tiles_gives_the_bits_of_the_whole(options: dict[str, Any]) -> None:
    whole = make([(150, 150)], head_dim=32)
    expected, _ = run(whole, variant="tma", **options)
    for begin, end in ((0, 64), (64, 150)):
        assert torch.equal(run(chunk(whole, begin, end), variant="tma", **options)[0], expected[begin:end])


def test_not_a_number_stays_in_its_row() -> None:
    case = make([(20, 45), (9, 31)], head_dim=32)
    clean, _ = run(case, variant="tma")
    case.q[:, 3] = math.nan
    out, _ = run(case, variant="tma")
    kept = torch.arange(29) != 3
    assert bool(out[3].isnan().all())
    assert torch.equal(out[kept], clean[kept])


def test_auto_takes_it_where_it_fits_and_pointers_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []

    def take(call: Any) -> bool:
        launched.append(str(call.layout.dtype))
        return True

    monkeypatch.setattr(prefill_tma, "try_launch", take)
    run(make([(3, 9)], head_dim=32), variant="auto")
    assert launched == ["torch.float16"]
    check(make([(3, 9)], head_dim=32, dtype=torch.float32), variant="auto")
    check(make([(3, 9)], head_dim=32, block_size=32), variant="auto")
    check(make([(3, 9)], head_dim=96), variant="auto")
    assert len(launched) == 1


def test_auto_tries_what_a_device_refuses_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Any] = []

    def refuse(call: Any) -> None:
        tried.append(call)
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(prefill_tma, "launch", refuse)
    monkeypatch.setattr(prefill_tma, "_unusable", set())
    with caplog.at_level(logging.WARNING):
        check(make([(3, 9)], head_dim=32), variant="auto")
        check(make([(3, 9)], head_dim=32), variant="auto")
    assert len(tried) == 1
    assert "PassManager::run failed" in caplog.text


def _strided(layout: KvLayout) -> KvLayout:
    row = layout.head_dim * 2
    return dataclasses.replace(layout, head_stride=row, kv_stride=row * 64, token_stride=2 * row)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"dtype": torch.float32}, "layout.dtype must be float16 or bfloat16, got torch.float32"),
        ({"head_dim": 80}, "head_dim must be a power of two, got 80"),
        ({"block_size": 32}, "block_size must be a multiple of 64, got 32"),
    ],
)
def test_asking_for_it_says_why_it_cannot_be(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"variant must be auto or pointer, got tma, for which {message}"):
        run(make([(3, 9)], **({"head_dim": 32} | shape)), variant="tma")


def test_asking_for_it_says_which_strides_it_needs() -> None:
    case = make([(3, 9)], head_dim=32)
    with pytest.raises(ValueError, match="for which q strides must be contiguous"):
        run(dataclasses.replace(case, q=torch.zeros(1, 3, 2, 64, dtype=HALF)[..., :32]), variant="tma")
    with pytest.raises(ValueError, match=r"for which layout\.token_stride must be 64, got 128"):
        run(dataclasses.replace(case, layout=_strided(case.layout)), variant="tma")
    with pytest.raises(
        ValueError, match="for which head_stride, kv_stride, layer_offset must be multiples of 64"
    ):
        run(case, variant="tma", layer_offset=32)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_100", "gfx942"])
def test_other_architectures_do_without(arch: str) -> None:
    case = make([(3, 9)], head_dim=32)
    seen: list[str | None] = []

    def look(call: Any) -> None:
        tiles = prefill_tiles(ARCHS[arch], 32, 2, HALF, 64)
        seen.append(prefill_tma.misfit(call, tiles, ARCHS[arch]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill_tma, "launch", look)
        run(case, variant="tma")
    assert seen == [f"architecture must be sm_90, got {arch}"]


def test_the_buffer_for_descriptors_grows_and_keeps_what_it_gave() -> None:
    allocate = prefill_tma._Descriptors(torch.device("cpu"))
    first = allocate(128, 128, None)
    assert allocate(first.numel(), 128, None) is first
    second = allocate(first.numel() + 1, 128, None)
    assert second.numel() > first.numel()
    assert allocate(128, 128, None) is second
