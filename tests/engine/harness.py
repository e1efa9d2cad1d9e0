"""Drives a loaded model the way the step runner does, without scheduler or sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends import KV_GRANULE, KvBinding, LoadedModel, StepInputs


class Harness:
    """Rows of one model over an arena full of NaN, their blocks shuffled; each row is one sequence in its own slot."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        rows: int = 4,
        max_len: int = 160,
        block_size: int = 16,
        max_batch: int = 512,
    ) -> None:
        self.model = model
        per_row = -(-max_len // block_size)
        block_bytes = model.bytes_per_block(block_size)
        blocks = rows * per_row + 3
        raw = np.full(blocks * block_bytes + KV_GRANULE, 0xFF, np.uint8)
        start = -raw.ctypes.data % KV_GRANULE
        order = np.random.default_rng(5).permutation(blocks)[: rows * per_row]
        self._table = (order * (block_bytes // KV_GRANULE)).astype(np.int32).reshape(rows, per_row)
        self.arena: NDArray[np.uint8] = raw[start : start + blocks * block_bytes]
        self.lengths = [0] * rows
        model.bind_kv(
            KvBinding(
                arena=self.arena,
                block_size=block_size,
                block_table=self._table,
                max_batch_tokens=max_batch,
            )
        )

    def step(
        self, batch: Mapping[int, Sequence[int]], *, all_logits: bool = False
    ) -> list[NDArray[np.float32]]:
        """Appends tokens to slots in one step; returns each row's logits: of its last token, or of all of them."""
        slots = list(batch)
        counts = [len(batch[slot]) for slot in slots]
        query_start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        positions = np.concatenate(
            [np.arange(self.lengths[slot], self.lengths[slot] + len(batch[slot])) for slot in slots]
        )
        for slot in slots:
            self.lengths[slot] += len(batch[slot])
        wanted = np.arange(query_start[-1]) if all_logits else query_start[1:] - 1
        logits = self.model.forward(
            StepInputs(
                tokens=np.concatenate([np.asarray(batch[slot]) for slot in slots]).astype(np.int32),
                positions=positions.astype(np.int32),
                query_start=query_start,
                seq_lens=np.array([self.lengths[slot] for slot in slots], np.int32),
                slots=np.array(slots, np.int32),
                logit_rows=wanted.astype(np.int32),
            )
        ).copy()
        if all_logits:
            return [logits[query_start[row] : query_start[row + 1]] for row in range(len(slots))]
        return [logits[row : row + 1] for row in range(len(slots))]

    def greedy(
        self, prompts: Sequence[Sequence[int]], steps: int
    ) -> tuple[list[list[int]], list[NDArray[np.float32]]]:
        """Decodes all prompts as one batch; returns tokens [row][steps] and logits [row] [steps, vocab]."""
        rows = self.step(dict(enumerate(prompts)))
        logits = [[row[-1]] for row in rows]
        tokens = [[int(row[-1].argmax())] for row in rows]
        for _ in range(steps - 1):
            rows = self.step({slot: out[-1:] for slot, out in enumerate(tokens)})
            for slot, row in enumerate(rows):
                logits[slot].append(row[-1])
                tokens[slot].append(int(row[-1].argmax()))
        return tokens, [np.stack(row) for row in logits]


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest distance of any logit, divided by the largest absolute logit of its row; the worst row counts."""
    scale = np.abs(expected).max(axis=-1)
    return float((np.abs(found - expected).max(axis=-1) / scale).max())
