"""The sampler against its specification in numpy, and its distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from airi._core import cpu
from airi.kernels import reference
from tests.cpu.arrays import address

Rows = npt.NDArray[np.float32]


def per_row(value: Any, rows: int, dtype: Any) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype), (rows,)))


def sample(
    logits: Rows,
    *,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    seed: Any = 0,
    draw: Any = 0,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Tokens and NaN flags; a row stride wider than the vocabulary, NaN between the rows."""
    rows, vocab = logits.shape
    padded = np.full((rows, vocab + 3), np.nan, np.float32)
    padded[:, :vocab] = logits
    tokens = np.full(rows, -1, np.int32)
    flags = np.full(rows, 7, np.uint8)
    options = (
        per_row(temperature, rows, np.float32),
        per_row(top_k, rows, np.int32),
        per_row(top_p, rows, np.float32),
        per_row(min_p, rows, np.float32),
        per_row(seed, rows, np.uint64),
        per_row(draw, rows, np.int32),
    )
    arrays = [*(address(x) for x in (*options, tokens, flags)), vocab + 3]
    cpu.sample(address(padded), rows, vocab, *arrays)
    return tokens, flags


def random_logits(rows: int, vocab: int, *, spread: float = 3.0, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, vocab)) * spread).astype(np.float32)


FILTERS: list[dict[str, float]] = [
    {},
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 50},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"top_k": 50, "top_p": 0.9},
    {"min_p": 0.1},
    {"min_p": 0.02, "top_p": 0.8, "top_k": 30},
    {"temperature": 2.0, "top_p": 0.999},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("vocab", [1, 5, 64, 1000, 20001])
def test_tokens_are_those_of_the_specification(isa: str, vocab: int) -> None:
    rows = 5
    seeds = np.array([0, 1, 2**32, 2**63 + 12345, 2**64 - 1], np.uint64)
    for options in FILTERS:
        for spread in (0.5, 4.0):
            logits = random_logits(rows, vocab, spread=spread)
            tokens, flags = sample(logits, seed=seeds, draw=np.arange(rows), **options)
            assert not flags.any()
            arguments: dict[str, Any] = {"temperature": 1.0, **options}
            expected = [
                reference.sample_row(logits[i], seed=int(seeds[i]), draw=i, **arguments) for i in range(rows)
            ]
            assert tokens.tolist() == expected, options


def kept_by_draws(logits: Rows, draws: int, **options: float) -> set[int]:
    """Which tokens of one row appear in many draws."""
    tokens, _ = sample(np.repeat(logits, draws, 0), draw=np.arange(draws), **options)
    return set(tokens.tolist())


@pytest.mark.parametrize(
    "options", [{"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 9, "top_p": 0.5, "min_p": 0.1}]
)
def test_draws_reach_exactly_the_tokens_that_the_filters_keep(options: dict[str, float]) -> None:
    logits = random_logits(1, 40, spread=1.0, seed=3)
    arguments: dict[str, Any] = {"temperature": 1.0, **options}
    expected = np.flatnonzero(reference.keep_mask(logits[0], **arguments))
    assert kept_by_draws(logits, 4000, **options) == set(expected.tolist())


def test_ties_are_kept_by_top_k_and_cut_by_id_by_top_p() -> None:
    logits = np.array([[1, 0, 1, 1, 0, 1]], np.float32)
    assert kept_by_draws(logits, 500, top_k=2) == {0, 2, 3, 5}
    assert kept_by_draws(logits, 500, top_k=4, top_p=0.5) == {0, 2}
    assert kept_by_draws(logits, 500, top_k=4, top_p=0.51) == {0, 2, 3}


def test_banned_tokens_are_never_drawn() -> None:
    logits = np.full((1, 300), -np.inf, np.float32)
    logits[0, [7, 250]] = 0.5
    for options in FILTERS:
        assert kept_by_draws(logits, 200, **options) <= {7, 250}


@pytest.mark.parametrize("seeds", ["one seed, many draws", "many seeds, one draw"])
def test_draws_follow_the_softmax(seeds: str) -> None:
    draws = 60000
    logits = np.array([[2.0, 0.0, -1.0, 1.0, 0.5, -3.0, 1.5]], np.float32)
    by_seed = seeds.startswith("many")
    numbers = np.arange(draws)
    tokens, _ = sample(
        np.repeat(logits, draws, 0),
        temperature=0.8,
        seed=numbers if by_seed else 1234,
        draw=3 if by_seed else numbers,
    )
    p = np.exp(logits[0].astype(np.float64) / 0.8)
    expected = p / p.sum() * draws
    counts = np.bincount(tokens, minlength=7)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 22.5  # the 99.9th percentile for 6 degrees of freedom


def test_a_row_depends_on_itself_its_seed_and_its_draw_alone() -> None:
    logits = random_logits(33, 3000)
    seeds = np.arange(33, dtype=np.uint64) * 77
    together, _ = sample(logits, seed=seeds, draw=5, top_p=0.95)
    alone = [int(sample(logits[i : i + 1], seed=seeds[i], draw=5, top_p=0.95)[0][0]) for i in range(33)]
    assert together.tolist() == alone
    cpu.set_num_threads(3)
    assert sample(logits, seed=seeds, draw=5, top_p=0.95)[0].tolist() == alone


def test_greedy_takes_the_lowest_id_among_equals(isa: str) -> None:
    logits = np.zeros((1, 500), np.float32)
    logits[0, [130, 131, 400]] = 2.0
    assert sample(logits, temperature=0.0)[0].tolist() == [130]
    assert sample(np.zeros((1, 70), np.float32), temperature=0.0)[0].tolist() == [0]


def test_rows_without_a_distribution_are_flagged(isa: str) -> None:
    logits = random_logits(5, 1000)
    logits[1, 999] = np.nan
    logits[2, 0] = np.inf
    logits[3] = -np.inf
    for temperature in (0.0, 1.0):
        tokens, flags = sample(logits, temperature=temperature)
        assert flags.tolist() == [0, 1, 1, 1, 0]
        assert tokens[1:4].tolist() == [0, 0, 0]


@pytest.mark.parametrize("temperature", [-1.0, np.nan, np.inf])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature\[0\]"):
        sample(np.zeros((1, 8), np.float32), temperature=temperature)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab is 0"):
        cpu.sample(4096, 1, 0, *[4096] * 8)
    with pytest.raises(ValueError, match="rows is 0"):
        cpu.sample(4096, 0, 5, *[4096] * 8)
    with pytest.raises(ValueError, match="stride is 4"):
        cpu.sample(4096, 1, 5, *[4096] * 8, *[4])
    with pytest.raises(ValueError, match="every array"):
        cpu.sample(4096, 1, 5, *[0] * 8)
