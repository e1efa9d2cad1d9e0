"""Operations on a step's tokens and on the block table, against the specification."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.kernels import reference
from airi.kernels.tokens import apply_table_deltas, fill_tokens, map_tokens


def int32(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def drawn(generator: torch.Generator, low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)


@settings(max_examples=15, deadline=None)
@given(
    queries=st.lists(st.sampled_from([0, 1, 1, 2, 7, 130]), max_size=20),
    padding=st.integers(0, 9),
    block_size=st.sampled_from([8, 16, 50]),
    seed=st.integers(0, 99),
)
def test_each_token_has_the_entry_of_its_block(
    queries: list[int], padding: int, block_size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = len(queries)
    query_start = int32([0, *queries]).cumsum(0).int()
    seq_lens = int32(queries) + drawn(generator, 0, 200, rows) * (int32(queries) > 0)
    slots = torch.where(int32(queries) > 0, drawn(generator, 0, 30, rows), -1).int()
    table = drawn(generator, 0, 2**31 - 1, 30, 60)[:, :50]
    found = torch.full((int(query_start[-1]) + padding,), 0x5A5A5A5A, dtype=torch.int32)
    expected = found.clone()
    map_tokens(query_start, seq_lens, slots, table, found, block_size=block_size)
    reference.map_tokens(query_start, seq_lens, slots, table, expected, block_size=block_size)
    assert torch.equal(found, expected)
    assert bool((found[int(query_start[-1]) :] == -1).all())


def test_of_two_changes_to_one_place_the_later_stands() -> None:
    generator = torch.Generator().manual_seed(1)
    deltas = torch.cat((drawn(generator, 0, 4, 700, 2), drawn(generator, 0, 1000, 700, 1)), 1)
    for count in (0, 1, 127, 128, 129, 700, 900):
        found = torch.full((4, 6), 7, dtype=torch.int32)[:, :4]
        expected = found.clone()
        apply_table_deltas(found, deltas, int32([count]))
        reference.apply_table_deltas(expected, deltas, int32([count]))
        assert torch.equal(found, expected)


def test_a_change_outside_of_the_table_is_left_out() -> None:
    table = torch.zeros((9, 4), dtype=torch.int32)
    deltas = int32([[2, 1, 5], [3, 0, 6], [-1, 0, 6], [0, 4, 6], [0, -1, 6], [1, 3, 8]])
    apply_table_deltas(table[3:6], deltas, int32([6]))
    assert table.nonzero().tolist() == [[4, 3], [5, 1]]


def test_only_flagged_rows_take_the_last_token() -> None:
    flags = torch.tensor([1, 4, 5, 6, 4, 255], dtype=torch.uint8)
    query_start = int32([0, 1, 2, 2, 5, 6, 7])
    slots = int32([3, 0, -1, 1, 2, 4])
    for rows in (0, 3, 6):
        found, expected = int32([-1] * 8), int32([-1] * 8)
        last = int32([10, 11, 12, 13, 14])
        arguments = last, query_start[: rows + 1], slots[:rows], flags[:rows], 4
        fill_tokens(found, *arguments)
        reference.fill_tokens(expected, *arguments)
        assert torch.equal(found, expected)
    assert found.tolist() == [-1, 10, 11, -1, -1, 12, 14, -1]


def test_many_rows_take_the_last_token() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = 300
    flags = drawn(generator, 0, 3, rows).to(torch.uint8)
    slots = torch.randperm(rows, generator=generator).int()
    last = drawn(generator, 0, 50_000, rows)
    found, expected = int32([-1] * rows), int32([-1] * rows)
    fill_tokens(found, last, torch.arange(rows + 1).int(), slots, flags, 2)
    reference.fill_tokens(expected, last, torch.arange(rows + 1).int(), slots, flags, 2)
    assert torch.equal(found, expected)


def test_no_rows_leave_nothing_but_padding() -> None:
    entries = int32([5, 5])
    none = torch.empty(0, dtype=torch.int32)
    map_tokens(int32([0]), none, none, int32([[1]]), entries, block_size=16)
    assert entries.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: map_tokens(int32([0, 1]), int32([1]), int32([0]), int32([[1]]), int32([0]), block_size=0),
            "block_size must be 1 or more, got 0",
        ),
        (
            lambda: map_tokens(int32([0, 1]), int32([1]), int32([0]), int32([1]), int32([0]), block_size=16),
            r"block_table must be int32 \[any, any\], got int32 \[1\]",
        ),
        (
            lambda: map_tokens(int32([0]), int32([1]), int32([0]), int32([[1]]), int32([0]), block_size=16),
            r"query_start must be int32 \[2\], got int32 \[1\]",
        ),
        (
            lambda: apply_table_deltas(int32([[1]]), int32([[1, 2]]), int32([0])),
            r"deltas must be int32 \[any, 3\], got int32 \[1, 2\]",
        ),
        (
            lambda: apply_table_deltas(int32([[1]]).mT.expand(1, 4), int32([[1, 2, 3]]), int32([0, 1])),
            r"count must be int32 \[1\]|block_table must be contiguous in its last dimension",
        ),
        (
            lambda: fill_tokens(
                int32([0]), int32([0]), int32([0, 1]), int32([0]), torch.ones(1, dtype=torch.uint8), 3
            ),
            "pending_flag must be one bit of a byte, got 3",
        ),
        (
            lambda: fill_tokens(int32([0]), int32([0]), int32([0, 1]), int32([0]), int32([0]), 1),
            r"row_flags must be uint8 \[any\], got int32 \[1\]",
        ),
    ],
)
def test_a_bad_argument_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
