"""What the device's copy of a step's metadata promises beyond the step."""

from __future__ import annotations

import pytest
import torch

from airi.engine.backends.cuda.batch import BatchBuffers
from airi.engine.backends.cuda.device import CpuDevice


def test_padding_holds_nothing_of_the_step_before() -> None:
    buffers = BatchBuffers(CpuDevice(), 6, 16)
    arrays, _ = buffers.arrays(1, 0)
    batch = buffers.batch
    for rows, tokens, samples in ((6, 16, 6), (2, 5, 1), (0, 0, 0)):
        arrays.query_start[: rows + 1] = range(tokens - rows, tokens + 1)
        for column in (arrays.seq_lens, arrays.slots, arrays.row_flags):
            column[:rows] = 3
        arrays.tokens[:tokens] = arrays.positions[:tokens] = 3
        arrays.logit_rows[:samples] = 3
        arrays.pad(rows, tokens, samples)
        with torch.inference_mode():
            buffers.upload(arrays)
        assert batch.query_start[rows:].tolist() == [tokens] * (7 - rows)
        for padded in (batch.seq_lens, batch.slots, batch.row_flags):
            assert padded.tolist() == [3] * rows + [0] * (6 - rows)
        assert batch.logit_rows.tolist() == [3] * samples + [0] * (6 - samples)
        for padded in (batch.tokens, batch.positions):
            assert padded.tolist() == [3] * tokens + [0] * (16 - tokens)


def test_each_buffer_set_has_memory_of_its_own() -> None:
    """The core fills one while the device reads the other."""
    first, second = BatchBuffers(CpuDevice(), 2, 4).arrays(1, 1)
    for name in (
        "tokens",
        "positions",
        "query_start",
        "seq_lens",
        "slots",
        "row_flags",
        "deltas",
        "ops",
        "sampled",
    ):
        getattr(first, name).fill(1)
        assert not getattr(second, name).any()


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_every_change_of_the_block_table_is_brought_over(count: int) -> None:
    buffers = BatchBuffers(CpuDevice(), 2, 4)
    arrays, _ = buffers.arrays(40, 0)
    arrays.deltas[:] = range(3)
    arrays.cleared[:] = 7  # of an earlier step, but for the first `count`
    with torch.inference_mode():
        changes = buffers.upload_changes(arrays, count)
    assert changes.deltas[:count].tolist() == [[0, 1, 2]] * count
    assert changes.cleared.tolist() == [[7, 7]] * count + [[0, 0]] * (len(changes.deltas) - count)
    assert len(changes.deltas) & (len(changes.deltas) - 1) == 0, "kernels are compiled for few shapes"
