"""Penalties, biases and log-probabilities against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from airi._core import cpu
from airi.kernels import reference
from tests.cpu.arrays import address


def test_penalties_follow_the_formula() -> None:
    rng = np.random.default_rng(0)
    row = rng.standard_normal(500).astype(np.float32)
    prompt = rng.integers(0, 500, 90).astype(np.int32)
    output = rng.integers(0, 100, 60).astype(np.int32)
    options = {"repetition": 1.3, "presence": 0.4, "frequency": 0.25}
    expected = reference.penalise_row(row, prompt, output, **options)
    for _ in range(2):  # the counters must be clean again
        actual = row.copy()
        cpu.apply_penalties(address(actual), 500, address(prompt), 90, address(output), 60, **options)
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_neutral_penalties_change_no_bit() -> None:
    row = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    ids = np.arange(64, dtype=np.int32)
    actual = row.copy()
    cpu.apply_penalties(address(actual), 64, address(ids), 64, address(ids), 64)
    assert np.array_equal(actual, row)


def test_bias_is_added_and_may_ban() -> None:
    row = np.zeros(10, np.float32)
    ids = np.array([3, 9, 3], np.int32)
    values = np.array([1.5, -np.inf, 0.25], np.float32)
    cpu.apply_bias(address(row), 10, address(ids), address(values), 3)
    expected = np.zeros(10, np.float32)
    expected[3], expected[9] = 1.75, -np.inf
    assert np.array_equal(row, expected)


@pytest.mark.parametrize("token", [-1, 10])
def test_ids_outside_of_the_row_are_refused(token: int) -> None:
    row = np.zeros(10, np.float32)
    ids = np.array([token], np.int32)
    with pytest.raises(ValueError, match="outside of the 10 logits"):
        cpu.apply_bias(address(row), 10, address(ids), address(row), 1)
    with pytest.raises(ValueError, match="prompt_ids"):
        cpu.apply_penalties(address(row), 10, address(ids), 1, 0, 0)
    with pytest.raises(ValueError, match="output_ids"):
        cpu.apply_penalties(address(row), 10, 0, 0, address(ids), 1)
    with pytest.raises(ValueError, match="repetition"):
        cpu.apply_penalties(address(row), 10, 0, 0, 0, 0, repetition=0.0)


@pytest.mark.parametrize("vocab", [3, 64, 5000])
def test_logprobs_ranks_and_alternatives_match_numpy(isa: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows, top = 6, min(20, vocab)
    logits = (rng.standard_normal((rows, vocab)) * 4).round(1).astype(np.float32)  # with ties
    tokens = rng.integers(0, vocab, rows).astype(np.int32)
    logprobs, ranks = np.full(rows, np.nan, np.float32), np.zeros(rows, np.int32)
    top_ids, top_logprobs = np.full((rows, top), -1, np.int32), np.full((rows, top), np.nan, np.float32)
    row_arrays = (address(tokens), address(logprobs), address(ranks))
    alternatives = (address(top_ids), address(top_logprobs))
    cpu.log_softmax_gather(address(logits), rows, vocab, *row_arrays, top, *alternatives)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    np.testing.assert_allclose(logprobs, expected[np.arange(rows), tokens], atol=3e-6, rtol=3e-6)
    assert ranks.tolist() == [1 + int((logits[i] > logits[i, t]).sum()) for i, t in enumerate(tokens)]
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    assert np.array_equal(top_ids, order)
    np.testing.assert_allclose(top_logprobs, np.take_along_axis(expected, order, 1), atol=3e-6, rtol=3e-6)


def test_logprobs_of_a_broken_row_are_nan() -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, 5] = np.nan
    tokens, ranks = np.zeros(1, np.int32), np.zeros(1, np.int32)
    logprobs, top_ids, top_logprobs = np.zeros(1, np.float32), np.zeros(2, np.int32), np.zeros(2, np.float32)
    cpu.log_softmax_gather(
        address(logits),
        1,
        100,
        address(tokens),
        address(logprobs),
        address(ranks),
        2,
        address(top_ids),
        address(top_logprobs),
    )
    assert np.isnan(logprobs).all()
    assert np.isnan(top_logprobs).all()


def test_too_many_alternatives_are_refused() -> None:
    with pytest.raises(ValueError, match="top is 9"):
        cpu.log_softmax_gather(4096, 1, 8, 4096, 4096, 4096, 9, 4096, 4096)
