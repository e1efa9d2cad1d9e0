"""Penalties, edits and log-probabilities of logits against the specification and the CPU engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from airi._core import cpu
from airi.kernels import logits as kernels
from airi.kernels import reference
from airi.kernels.logits import MAX_TOP
from airi.kernels.token_counts import IN_PROMPT, ONE_OUTPUT


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def some_logits(rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows that lie apart, with ties."""
    rng = np.random.default_rng(vocab)
    wide = torch.full((rows, vocab + 16), torch.nan, dtype=dtype)
    wide[:, :vocab] = torch.from_numpy((rng.standard_normal((rows, vocab)) * 4).round(1))
    return wide[:, :vocab]


def some_penalties() -> dict[str, torch.Tensor]:
    return {
        "repetition": torch.tensor([1.3, 9.0, 0.7]),
        "presence": torch.tensor([0.4, 9.0, -1.0]),
        "frequency": torch.tensor([0.25, 9.0, 0.0]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_penalties_are_those_of_the_specification(dtype: torch.dtype) -> None:
    vocab = 1500
    seen = torch.zeros(4, vocab, dtype=torch.int32)
    seen[2, 3:1400:7] = IN_PROMPT
    seen[2, 5:900:21] += 3 * ONE_OUTPUT
    seen[0, 700:] = ONE_OUTPUT
    found, expected = some_logits(5, vocab, dtype), some_logits(5, vocab, dtype)
    before = found.clone()
    where = int32(4, -1, 1), int32(2, 0, 0)
    kernels.penalise(found, *where, seen, **some_penalties())
    reference.penalise(expected, *where, seen, **some_penalties())
    assert torch.equal(found, expected)
    assert torch.equal(found[[0, 2, 3]], before[[0, 2, 3]])
    assert torch.equal(found[4][seen[2] == 0], before[4][seen[2] == 0])
    assert not torch.equal(found[4], before[4])


def test_penalties_are_those_of_the_cpu_engine() -> None:
    vocab, rng = 600, np.random.default_rng(0)
    prompt, output = (rng.integers(0, most, 90).astype(np.int32) for most in (600, 50))
    seen = torch.full((2, vocab), 77, dtype=torch.int32)  # of a request before
    kernels.start_counts(seen, 1, torch.from_numpy(prompt), torch.from_numpy(output[:60]))
    for token in output[60:]:
        kernels.count_tokens(seen, int32(-1, 1), int32(3, int(token)))
    assert (seen[0] == 77).all()
    again = torch.zeros_like(seen)
    reference.start_counts(again, 1, torch.from_numpy(prompt), torch.from_numpy(output))
    assert torch.equal(seen[1], again[1])
    found = some_logits(1, vocab).contiguous()
    expected = found[0].numpy().copy()
    options: dict[str, Any] = {"repetition": 1.3, "presence": 0.4, "frequency": 0.25}
    arrays = prompt.ctypes.data, len(prompt), output.ctypes.data, len(output)
    cpu.apply_penalties(expected.ctypes.data, vocab, *arrays, **options)
    columns = {name: torch.tensor([value]) for name, value in options.items()}
    kernels.penalise(found, int32(0), int32(1), seen, **columns)
    assert np.array_equal(found[0].numpy(), expected)


def test_ids_outside_of_the_vocabulary_are_not_counted() -> None:
    seen = torch.zeros(3, 10, dtype=torch.int32)
    kernels.start_counts(seen, 1, int32(0, -1, 10, 9), int32(10**6, 4, 4))
    assert seen[1].tolist() == [1, 0, 0, 0, 4, 0, 0, 0, 0, 1]
    assert not seen[[0, 2]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_edits_add_and_ban(dtype: torch.dtype) -> None:
    found, expected = some_logits(3, 200, dtype), some_logits(3, 200, dtype)
    before = found.clone()
    edits = int32(0, 0, 2, -1, 2), int32(3, 199, 0, 5, 7), torch.tensor([1.5, -torch.inf, 0.37, 9.0, -2.0])
    kernels.edit_logits(found, *edits)
    reference.edit_logits(expected, *edits)
    assert torch.equal(found, expected)
    assert found[0, 199] == -torch.inf
    assert found[2, 7] == (before[2, 7].float() - 2).to(dtype)
    assert torch.equal(found[1], before[1])


@pytest.mark.parametrize(("vocab", "count"), [(3, 3), (64, 0), (5000, 20), (9000, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_those_of_the_specification(vocab: int, count: int, dtype: torch.dtype) -> None:
    logits = some_logits(3, vocab, dtype)
    tokens = int32(0, vocab - 1, vocab // 2)
    out = kernels.gather_logprobs(logits, tokens, count)
    expected = reference.gather_logprobs(logits, tokens, count)
    torch.testing.assert_close(out.logprobs, expected.logprobs, atol=3e-6, rtol=3e-6)
    torch.testing.assert_close(out.top_logprobs, expected.top_logprobs, atol=3e-6, rtol=3e-6)
    assert torch.equal(out.ranks, expected.ranks)
    assert torch.equal(out.top_ids, expected.top_ids)


def test_logprobs_are_those_of_the_cpu_engine() -> None:
    logits, tokens, top = some_logits(2, 700).contiguous(), int32(9, 650), 12
    logprobs, ranks = np.empty(2, np.float32), np.empty(2, np.int32)
    ids, values = np.empty((2, top), np.int32), np.empty((2, top), np.float32)
    outputs = logprobs.ctypes.data, ranks.ctypes.data, top, ids.ctypes.data, values.ctypes.data
    cpu.log_softmax_gather(logits.data_ptr(), 2, 700, tokens.data_ptr(), *outputs)
    out = kernels.gather_logprobs(logits, tokens, top)
    assert np.array_equal(out.top_ids.numpy(), ids)
    assert np.array_equal(out.ranks.numpy(), ranks)
    np.testing.assert_allclose(out.logprobs.numpy(), logprobs, atol=3e-6, rtol=3e-6)
    np.testing.assert_allclose(out.top_logprobs.numpy(), values, atol=3e-6, rtol=3e-6)


def test_logprobs_of_a_broken_row_are_nan_and_its_neighbours_are_untouched() -> None:
    logits = some_logits(4, 100)
    whole = kernels.gather_logprobs(logits, int32(1, 1, 1, 1), 3)
    logits[0, 5], logits[1, 5], logits[2] = torch.nan, torch.inf, -torch.inf
    out = kernels.gather_logprobs(logits, int32(1, 1, 1, 1), 3)
    assert torch.isnan(out.logprobs[:3]).all()
    assert torch.isnan(out.top_logprobs[:3]).all()
    assert not out.top_ids[:3].any()
    for found, expected in zip(out, whole, strict=True):
        assert torch.equal(found[3], expected[3])


def test_as_many_alternatives_as_can_be_with_banned_tokens_last() -> None:
    logits = torch.full((1, 4200), -torch.inf)
    logits[0, 4100:4130] = torch.arange(30.0)
    out = kernels.gather_logprobs(logits, int32(4129), MAX_TOP)
    assert out.top_ids[0].tolist() == [*range(4129, 4099, -1), *range(34)]
    assert (out.top_logprobs[0, 30:] == -torch.inf).all()
    assert out.ranks.tolist() == [1]


def test_no_rows_are_no_work() -> None:
    none, empty = int32(), torch.zeros(0)
    logits, seen = torch.zeros(2, 9), torch.zeros(1, 9, dtype=torch.int32)
    kernels.penalise(logits, none, none, seen, repetition=empty, presence=empty, frequency=empty)
    kernels.edit_logits(logits, none, none, empty)
    kernels.count_tokens(seen, none, none)
    assert kernels.gather_logprobs(logits[:0], none, 4).top_ids.shape == (0, 4)
    assert not logits.any()
    assert not seen.any()


def test_bad_arguments_are_named() -> None:
    logits, seen = torch.zeros(2, 9), torch.zeros(1, 9, dtype=torch.int32)
    ones: dict[str, Any] = dict.fromkeys(("repetition", "presence", "frequency"), torch.ones(1))
    with pytest.raises(ValueError, match=r"lines must be int32 \[1\], got int32 \[2\]"):
        kernels.penalise(logits, int32(0), int32(0, 0), seen, **ones)
    with pytest.raises(ValueError, match=r"seen must be int32 \[any, 9\], got int32 \[1, 8\]"):
        kernels.penalise(logits, int32(0), int32(0), seen[:, :8], **ones)
    with pytest.raises(ValueError, match=r"presence must be float32 \[1\], got float32 \[2\]"):
        kernels.penalise(logits, int32(0), int32(0), seen, **ones | {"presence": torch.ones(2)})
    with pytest.raises(ValueError, match="line must be 0 to 0, got 1"):
        kernels.start_counts(seen, 1, int32(), int32())
    with pytest.raises(ValueError, match=r"values must be float32 \[1\], got float64 \[1\]"):
        kernels.edit_logits(logits, int32(0), int32(0), torch.zeros(1).double())
    with pytest.raises(ValueError, match="count must be 0 to 9, got 10"):
        kernels.gather_logprobs(logits, int32(0, 0), 10)
    with pytest.raises(ValueError, match="count must be 0 to 64, got 65"):
        kernels.gather_logprobs(torch.zeros(2, 99), int32(0, 0), 65)
