"""Sampling without a sort against the CPU engine's: the same token for the same logits, seed and draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from airi._core import cpu
from airi.kernels import reference
from airi.kernels.arch import ARCHS
from airi.kernels.limits import MAX_VOCAB
from airi.kernels.sample import SampleWorkspace, chunk_tokens, pick_tile, sample

Array = npt.NDArray[Any]
HOST = torch.device("cpu")
DTYPES: dict[str, Any] = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
}
DTYPES |= {"seeds": np.int64, "draws": np.int32}
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seeds": 1, "draws": 0}


def columns(rows: int, **options: Any) -> dict[str, Array]:
    """One value per row for every parameter; those not given are neutral."""
    given = DEFAULTS | options
    return {
        name: np.array(np.broadcast_to(np.asarray(given[name], dtype), (rows,)))
        for name, dtype in DTYPES.items()
    }


def on_cpu(logits: torch.Tensor, options: dict[str, Array]) -> tuple[list[int], list[int]]:
    """Tokens and status of the CPU engine."""
    x = logits.float().contiguous().numpy()
    tokens, status = np.full(len(x), -1, np.int32), np.full(len(x), 7, np.uint8)
    arrays = [a.ctypes.data for a in (*options.values(), tokens, status)]
    cpu.sample(x.ctypes.data, *x.shape, *arrays)
    return tokens.tolist(), status.tolist()


def on_kernels(
    logits: torch.Tensor, options: dict[str, Array], *, chunk: int = 256, capacity: int = 4096
) -> tuple[list[int], list[int]]:
    """The same of the kernels, whose workspace was used for something else before."""
    rows, vocab = logits.shape
    workspace = SampleWorkspace.allocate(HOST, rows + 1, vocab, chunk=chunk, capacity=capacity)
    for name in ("stats", "histogram", "records", "offsets", "candidates", "picks"):
        getattr(workspace, name).fill_(0x7FC00000)  # a large count, a NaN
    tokens = torch.full((rows,), -1, dtype=torch.int32)
    status = torch.full((rows,), 7, dtype=torch.uint8)
    tensors: dict[str, Any] = {name: torch.from_numpy(column) for name, column in options.items()}
    sample(logits, **tensors, out_tokens=tokens, out_status=status, workspace=workspace)
    return tokens.tolist(), status.tolist()


def random_logits(rows: int, vocab: int, *, spread: float, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.standard_normal((rows, vocab)) * spread).astype(np.float32))


def random_columns(rows: int, seed: int) -> dict[str, Array]:
    """Settings of all kinds, mixed in one batch."""
    rng = np.random.default_rng(seed)
    return columns(
        rows,
        temperature=rng.choice([0, 0.1, 0.7, 1.0, 2.0], rows),
        top_k=rng.choice([0, 1, 3, 50, 500, 10**6], rows),
        top_p=rng.choice([1, 0.9, 0.5, 0.01, 0.99, 0.0], rows),
        min_p=rng.choice([0, 0, 0.1, 0.02, 1.0], rows),
        seeds=rng.integers(-(2**63), 2**63 - 1, rows),
        draws=rng.integers(0, 5000, rows),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_k": 50},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"top_k": 50, "top_p": 0.9},
        {"min_p": 0.1},
        {"min_p": 0.02, "top_p": 0.8, "top_k": 30},
        {"min_p": 0.05, "top_p": 0.7},
        {"temperature": 2.0, "top_p": 0.999},
        {"temperature": 1e-4, "top_p": 0.5},
    ],
    ids=str,
)
def test_tokens_are_those_of_the_cpu_engine(options: dict[str, float]) -> None:
    logits = torch.cat([random_logits(2, 601, spread=spread, seed=5) for spread in (0.5, 4.0)])
    given = columns(4, seeds=np.array([0, 1, 2**40, -5]), draws=np.arange(4), **options)
    assert on_kernels(logits, given) == on_cpu(logits, given)


@pytest.mark.parametrize(("vocab", "chunk"), [(1, 16), (5, 16), (64, 64), (130, 64)])
def test_vocabularies_that_no_chunk_divides(vocab: int, chunk: int) -> None:
    logits, given = random_logits(6, vocab, spread=2.0), random_columns(6, vocab)
    assert on_kernels(logits, given, chunk=chunk) == on_cpu(logits, given)


def test_more_candidates_than_there_is_room_for_are_found_all_the_same() -> None:
    logits, given = random_logits(6, 200, spread=0.02), random_columns(6, 11)
    assert on_kernels(logits, given, chunk=64, capacity=3) == on_cpu(logits, given)


@pytest.mark.slow  # 200 s on a busy machine
@pytest.mark.parametrize(("vocab", "chunk", "capacity"), [(1000, 64, 16), (20001, 4096, 8192), (333, 64, 1)])
@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
def test_tokens_are_those_of_the_cpu_engine_with_mixed_settings(
    vocab: int, chunk: int, capacity: int, spread: float
) -> None:
    logits, given = random_logits(24, vocab, spread=spread), random_columns(24, vocab)
    logits[::2] = logits[::2].round()  # with ties
    assert on_kernels(logits, given, chunk=chunk, capacity=capacity) == on_cpu(logits, given)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_k": 4, "top_p": 0.5}, {"top_p": 0.51}], ids=str)
def test_ties_are_kept_by_top_k_and_cut_by_id_by_top_p(options: dict[str, float]) -> None:
    logits = torch.zeros(8, 40)
    logits[:, [0, 2, 17, 33]] = 1.0
    given = columns(8, draws=np.arange(8), **options)
    tokens, _ = on_kernels(logits, given, chunk=16)
    assert (tokens, [0] * 8) == on_cpu(logits, given)
    kept = reference.keep_mask(logits[0].numpy(), temperature=1.0, **options)
    assert kept[tokens].all()


def test_the_specification_says_the_same_of_a_whole_batch() -> None:
    logits, given = random_logits(8, 120, spread=3.0), random_columns(8, 3)
    logits[5, 3] = torch.nan
    tokens, status = torch.full((8,), -1, dtype=torch.int32), torch.full((8,), 7, dtype=torch.uint8)
    tensors: dict[str, Any] = {name: torch.from_numpy(column) for name, column in given.items()}
    reference.sample(logits, **tensors, out_tokens=tokens, out_status=status)
    assert (tokens.tolist(), status.tolist()) == on_cpu(logits, given)


def test_rows_without_a_distribution_are_told_and_their_neighbours_are_untouched() -> None:
    logits = random_logits(5, 300, spread=2.0)
    broken = logits.clone()
    broken[1, 299], broken[2, 0], broken[3] = torch.nan, torch.inf, -torch.inf
    for options in ({"temperature": 0.0}, {"top_p": 0.9, "top_k": 20}):
        given = columns(5, **options)
        tokens, status = on_kernels(broken, given, chunk=64)
        assert status == [0, 1, 1, 1, 0]
        whole, _ = on_kernels(logits, given, chunk=64)
        assert tokens == [whole[0], 0, 0, 0, whole[4]]


def test_banned_tokens_are_never_drawn() -> None:
    logits = torch.full((4, 300), -torch.inf)
    logits[:, 7], logits[:, 250] = 0.5, 0.25
    for options in ({}, {"top_k": 100}, {"top_p": 0.9999}, {"top_k": 2, "min_p": 0.1}):
        given = columns(4, draws=np.arange(4), **options)
        tokens, status = on_kernels(logits, given, chunk=64)
        assert (tokens, status) == on_cpu(logits, given)
        assert set(tokens) <= {7, 250}


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(2, 500)
    logits[0, [130, 131, 400]] = 2.0
    assert on_kernels(logits, columns(2, temperature=0.0), chunk=64)[0] == [130, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_in_rows_that_lie_apart(dtype: torch.dtype) -> None:
    wide = torch.full((4, 330), torch.nan, dtype=dtype)
    logits = wide[:, :300]
    logits.copy_(random_logits(4, 300, spread=3.0))
    given = columns(4, top_p=0.9, top_k=[0, 5, 0, 50], seeds=np.arange(4))
    assert on_kernels(logits, given, chunk=64) == on_cpu(logits, given)


def test_a_row_depends_on_itself_alone() -> None:
    logits, given = random_logits(4, 300, spread=1.0), random_columns(4, 8)
    together, _ = on_kernels(logits, given, chunk=64)
    for row in (0, 3):
        alone = {name: column[row : row + 1] for name, column in given.items()}
        assert on_kernels(logits[row : row + 1], alone, chunk=64)[0] == together[row : row + 1]


def test_chunks_fill_a_device_and_a_row_has_at_most_64() -> None:
    for vocab in (1, 300, 32000, 50257, 128256, 152064, MAX_VOCAB):
        assert -(-vocab // chunk_tokens(vocab)) <= 64
    assert 64 * -(-152064 // chunk_tokens(152064)) >= 4 * 132
    assert (pick_tile(8192, ARCHS["sm_90"]), pick_tile(8192, ARCHS["gfx942"])) == (2048, 1024)
    assert pick_tile(256, ARCHS["sm_90"]) == 256


def call(**change: Any) -> None:
    tensors: dict[str, Any] = {name: torch.from_numpy(column) for name, column in columns(2).items()}
    outputs = {
        "out_tokens": torch.zeros(2, dtype=torch.int32),
        "out_status": torch.zeros(2, dtype=torch.uint8),
    }
    sample(**{"logits": torch.zeros(2, 40), **tensors, **outputs, **change})


def test_no_rows_are_no_work() -> None:
    tensors: dict[str, Any] = {name: torch.from_numpy(column) for name, column in columns(0).items()}
    outputs = {
        "out_tokens": torch.zeros(0, dtype=torch.int32),
        "out_status": torch.zeros(0, dtype=torch.uint8),
    }
    call(logits=torch.zeros(0, 40), **tensors, **outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 40).double()}, "logits must be float32 or float16 or bfloat16"),
        ({"logits": torch.zeros(40, 2).t()}, "logits must be contiguous in its last dimension"),
        ({"top_k": torch.zeros(2)}, r"top_k must be int32 \[2\], got float32 \[2\]"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds must be int64 \[2\], got int64 \[3\]"),
        ({"out_status": torch.zeros(2, dtype=torch.uint8, device="meta")}, "out_status must be on cpu"),
        (
            {"workspace": SampleWorkspace.allocate(HOST, 1, 40)},
            "rows of logits must be up to the workspace's 1",
        ),
        (
            {"workspace": SampleWorkspace.allocate(HOST, 2, 41)},
            "columns of logits must be the workspace's 41",
        ),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**change)


def test_a_workspace_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=f"vocab must be 1 to {MAX_VOCAB}, got 0"):
        SampleWorkspace.allocate(HOST, 1, 0)
    with pytest.raises(ValueError, match="chunk must be a power of two from 16, got 24"):
        SampleWorkspace.allocate(HOST, 1, 40, chunk=24)
    with pytest.raises(ValueError, match="max_rows must be 1 or more, got 0"):
        SampleWorkspace.allocate(HOST, 0, 40)
