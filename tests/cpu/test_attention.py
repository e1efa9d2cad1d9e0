"""Paged attention on CPUs against dense float64 attention, and what must not change its bits."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

from airi._core import cpu
from tests.cpu.paged_case import GRANULE, PagedCase

# Relative error of the whole output. float32 accumulates up to 4,097 terms in float32; bfloat16
# rounds the output (2^-9) and, with the bfloat16 dot product, the probabilities.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


def ragged(block_size: int) -> tuple[list[int], list[int]]:
    """Lengths around a block and a split, decode rows and chunks of prompts together."""
    seq_lens = [1, block_size - 1, block_size, block_size + 1, 255, 257, 300, 700, 4097]
    query_lens = [1, block_size - 1, 1, 3, 255, 1, 64, 33, 1]
    return seq_lens, query_lens


def check(
    case: PagedCase,
    expected: torch.Tensor,
    *,
    window: int = 0,
    softcap: float = 0.0,
    is_causal: bool = True,
) -> None:
    out = case.attend(window=window, softcap=softcap, is_causal=is_causal).double()
    assert torch.isfinite(out).all()
    error = ((out - expected).norm() / expected.norm()).item()
    assert error <= TOLERANCES[case.dtype]
    if case.dtype == torch.bfloat16:
        torch.testing.assert_close(out, expected, atol=1.5e-2, rtol=1e-2)


# (head_dim, q heads, kv heads, block size, window, softcap): each value of each at least once.
SHAPES = [
    (64, 9, 3, 16, 0, 0.0),
    (32, 2, 2, 8, 0, 0.0),
    (80, 4, 2, 16, 100, 0.0),
    (96, 5, 1, 32, 17, 30.0),
    (128, 14, 2, 128, 300, 0.0),
    (128, 16, 1, 64, 0, 50.0),
    (256, 8, 4, 16, 0, 50.0),
    (72, 7, 7, 16, 1, 0.0),
    (8, 12, 1, 24, 64, 0.0),
    (64, 64, 1, 16, 0, 0.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("head_dim", "q_heads", "kv_heads", "block_size", "window", "softcap"), SHAPES)
def test_every_instruction_set_matches_dense_attention(
    *,
    dtype: torch.dtype,
    head_dim: int,
    q_heads: int,
    kv_heads: int,
    block_size: int,
    window: int,
    softcap: float,
) -> None:
    seq_lens, query_lens = ragged(block_size)
    case = PagedCase(
        seq_lens=seq_lens,
        query_lens=query_lens,
        num_q_heads=q_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
    )
    if softcap:
        case.q.mul_(40)  # scores far beyond the cap: it decides the output
        with pytest.raises(AssertionError):
            check(case, case.expected(window=window), window=window, softcap=softcap)
    expected = case.expected(window=window, softcap=softcap)
    for isa in cpu.supported_isas():
        cpu.set_isa(isa)
        check(case, expected, window=window, softcap=softcap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_rows_may_share_blocks(dtype: torch.dtype) -> None:
    case = PagedCase(seq_lens=[100, 90, 64, 300], query_lens=[1, 40, 1, 7], shared_prefix=3, dtype=dtype)
    check(case, case.expected())


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("isa", cpu.supported_isas())
def test_float32_bits_do_not_depend_on_batch_chunks_or_threads(isa: str, threads: int) -> None:
    cpu.set_isa(isa)
    case = PagedCase(
        seq_lens=[1300, 40, 257, 600], query_lens=[300, 40, 1, 5], num_q_heads=9, num_kv_heads=3, head_dim=80
    )
    for window in (0, 70):
        cpu.set_num_threads(1)
        together = case.attend(window=window)
        cpu.set_num_threads(threads)
        assert torch.equal(case.attend(window=window), together)
        starts = [0, 300, 340, 341]
        for row in range(4):
            alone = case.attend(rows=[row], window=window)
            assert torch.equal(alone, together[starts[row] : starts[row] + alone.shape[0]])
        for step in (1, 7, 256):
            chunks = [(0, i, min(i + step, 300)) for i in range(0, 300, step)]
            assert torch.equal(case.attend_spans(chunks, window=window), together[:300])


def test_permuted_tables_give_the_same_bits() -> None:
    first, second = (
        PagedCase(seq_lens=[500, 90], query_lens=[3, 1], block_seed=seed).attend() for seed in (1, 2)
    )
    assert torch.equal(first, second)


def test_the_order_inside_of_a_block_does_not_matter() -> None:
    inside, outside = (
        PagedCase(seq_lens=[500, 90], query_lens=[30, 1], token_major=token_major).attend()
        for token_major in (False, True)
    )
    assert torch.equal(inside, outside)


def test_a_nan_in_a_visible_key_reaches_the_output() -> None:
    case = PagedCase(seq_lens=[50, 50], query_lens=[1, 1])
    case._block(case.arena, int(case.table[case.slots[0], 1]))[0, 0, 3, 5] = torch.nan
    out = case.attend()
    assert out[0, 0].isnan().all()
    assert out[1].isfinite().all()


def layout_arguments(**changes: object) -> dict[str, object]:
    return {
        "base": 4096,
        "block_size": 16,
        "num_kv_heads": 2,
        "head_dim": 64,
        "dtype": cpu.DType.F32,
        "head_stride": 8192,
        "kv_stride": 4096,
        "token_stride": 256,
        **changes,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base", 0),
        ("block_size", 0),
        ("num_kv_heads", 0),
        ("head_dim", 60),
        ("head_dim", 264),
        ("head_stride", 8190),
        ("kv_stride", 128),
        ("token_stride", 0),
    ],
)
def test_a_layout_out_of_range_names_the_field(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        cpu.KvLayout(**layout_arguments(**{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query_start", "seq_lens", "slots", "message"),
    [
        ([0, 2, 1, 4], [2, 2, 2], [0, 0, 0], "query_start falls after entry 1"),
        ([1, 2, 3, 4], [2, 2, 2], [0, 0, 0], "query_start must go from 0 to tokens"),
        ([0, 1, 2, 3], [2, 2, 2], [0, 0, 0], "query_start must go from 0 to tokens"),
        ([0, 1, 2, 4], [2, 2, 1], [0, 0, 0], r"seq_lens\[2\] is 1, less than"),
        ([0, 1, 2, 4], [2, 2, 2], [0, -3, 0], r"slots\[1\] is -3"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(
    query_start: list[int], seq_lens: list[int], slots: list[int], message: str
) -> None:
    arrays = [np.array(x, np.int32) for x in (query_start, seq_lens, slots)]
    starts, lens, lines = (x.ctypes.data for x in arrays)
    with pytest.raises(ValueError, match=message):
        cpu.PagedBatch(
            rows=3, tokens=4, query_start=starts, seq_lens=lens, slots=lines, block_table=lens, table_stride=1
        )


def test_attention_arguments_out_of_range_are_refused() -> None:
    case = PagedCase(seq_lens=[5], query_lens=[1], num_q_heads=5)
    with pytest.raises(ValueError, match="num_q_heads is 5"):
        case.attend()
    case = PagedCase(seq_lens=[5], query_lens=[1])
    with pytest.raises(ValueError, match="window is -1"):
        case.attend(window=-1)
    with pytest.raises(ValueError, match="softcap"):
        case.attend(softcap=-1.0)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="scale is"):
            case.attend(scale=scale)
    object.__setattr__(case, "table", case.table[:, :0].copy())
    with pytest.raises(ValueError, match="table_stride is 0"):
        case.attend()


def test_a_sequence_longer_than_its_line_of_the_table_is_refused() -> None:
    case = PagedCase(seq_lens=[100], query_lens=[1])
    object.__setattr__(case, "table", case.table[:, :6].copy())
    with pytest.raises(ValueError, match="needs 7 blocks, table_stride is 6"):
        case.attend()


def test_byte_offsets_beyond_two_gigabytes() -> None:
    """The same blocks at the far end of a sparse 6 GiB mapping give the same bits."""
    case = PagedCase(seq_lens=[300, 20], query_lens=[2, 1])
    expected = case.attend()
    size = 6 << 30
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    far = torch.frombuffer(memory, dtype=torch.float32)
    granules = (size - case.arena.numel() * 4) // GRANULE
    far[granules * GRANULE // 4 :][: case.arena.numel()] = case.arena
    case.table[case.table < 2**30] += granules
    object.__setattr__(case, "arena", far)
    assert torch.equal(case.attend(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("head_dim", "q_heads", "kv_heads"), [(32, 12, 12), (64, 9, 3), (80, 4, 2)])
def test_queries_see_every_key_of_their_row_where_attention_is_not_causal(
    isa: str, *, dtype: torch.dtype, head_dim: int, q_heads: int, kv_heads: int
) -> None:
    lens = [1, 15, 16, 17, 255, 256, 257, 300, 700]
    case = PagedCase(
        seq_lens=lens,
        query_lens=lens,
        num_q_heads=q_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )
    expected = case.expected(is_causal=False)
    check(case, expected, is_causal=False)
    whole = case.attend(is_causal=False)
    starts = np.cumsum([0, *lens])
    for row in (0, 3, 8):
        alone = case.attend(rows=[row], is_causal=False)
        assert torch.equal(alone, whole[starts[row] : starts[row + 1]]), "other bits than in a batch"


def test_a_window_is_refused_where_attention_is_not_causal() -> None:
    case = PagedCase(seq_lens=[4], query_lens=[4])
    with pytest.raises(ValueError, match="window is 2, accepted is 0 where attention is not causal"):
        case.attend(window=2, is_causal=False)
