"""Masks of tokens against the specification and the CPU engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from airi._core import cpu
from airi.kernels import reference
from airi.kernels.token_masks import mask_tokens


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def some_logits(rows: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that lie apart, with values that are not numbers."""
    wide = torch.full((rows, vocab + 16), torch.nan, dtype=dtype)
    wide[:, :vocab] = torch.from_numpy(np.random.default_rng(vocab).standard_normal((rows, vocab)) * 4)
    wide[:, 3 % vocab] = torch.nan
    return wide[:, :vocab]


def some_masks(rows: int, vocab: int) -> torch.Tensor:
    words = np.random.default_rng(rows).integers(-(2**31), 2**31, (rows, -(-vocab // 32)))
    return torch.from_numpy(words.astype(np.int32))


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tokens_without_a_bit_are_banned_in_their_rows_alone(dtype: torch.dtype, vocab: int) -> None:
    found, expected = some_logits(5, vocab, dtype), some_logits(5, vocab, dtype)
    before = found.clone()
    rows, masks = int32(4, -1, 1), some_masks(3, vocab)
    mask_tokens(found, rows, masks)
    reference.mask_tokens(expected, rows, masks)
    assert torch.equal(found.nan_to_num(99.0), expected.nan_to_num(99.0))
    assert torch.equal(found[[0, 2, 3]].nan_to_num(99.0), before[[0, 2, 3]].nan_to_num(99.0))
    assert found[:, 3 % vocab].isnan().all(), "what is not a number stays so"
    if vocab > 32:
        assert (found[4] == -torch.inf).any()
        assert (found[1] != -torch.inf).any()


def test_the_cpu_engine_bans_the_same() -> None:
    vocab = 1003
    expected, masks = some_logits(1, vocab, torch.float32).contiguous(), some_masks(1, vocab)
    found = expected[0].numpy().copy()
    words = masks[0].numpy().view(np.uint32)
    cpu.apply_token_mask(found.ctypes.data, vocab, words.ctypes.data, len(words))
    reference.mask_tokens(expected, int32(0), masks)
    assert np.array_equal(found, expected[0].numpy(), equal_nan=True)


def test_masks_of_another_size_are_refused() -> None:
    logits = torch.zeros(2, 64)
    with pytest.raises(ValueError, match="masks"):
        mask_tokens(logits, int32(0), torch.zeros(1, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match="rows"):
        mask_tokens(logits, torch.zeros(1), torch.zeros(1, 2, dtype=torch.int32))
    row, words = np.zeros(64, np.float32), np.zeros(3, np.uint32)
    with pytest.raises(ValueError, match="3 words for 64 logits"):
        cpu.apply_token_mask(row.ctypes.data, 64, words.ctypes.data, 3)


def test_no_rows_are_no_work() -> None:
    logits = torch.zeros(2, 64)
    mask_tokens(logits, int32(), torch.zeros(0, 2, dtype=torch.int32))
    assert not logits.any()
