"""Measures steps before the first request comes, so that the core knows from the start how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.backends import KV_GRANULE, StepInputs
from airi.engine.runner import ModelRunner

__all__ = ["Measured", "measure_steps", "teach"]

_CONTEXT = 256
_MOST_TEACHING = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """What a step computed, as `Runtime.observe_step` takes it, and how long that took."""

    work: tuple[int, int, int, float]
    micros: float


def measure_steps(
    runner: ModelRunner,
    arena: NDArray[np.uint8],
    *,
    block_size: int,
    num_kv_blocks: int,
    max_num_seqs: int,
    max_batch_tokens: int,
    max_model_len: int,
    seconds: float,
) -> list[Measured]:
    """Runs steps that only decode and steps that only prefill, in turns, larger and larger ones.

    Takes about `seconds`, but at least one of both. `arena` must be zero, and is again afterwards.
    """
    table = runner.block_table
    before = table.copy()
    # Each block of each row another one, as far as they go: what stays in a cache would look too fast.
    block_bytes = runner.model.bytes_per_block(block_size)
    num_blocks = min(num_kv_blocks, arena.size // block_bytes)
    table[:] = (np.arange(table.size) % num_blocks * (block_bytes // KV_GRANULE)).reshape(table.shape)
    context = min(_CONTEXT, max_model_len - 1)
    written: set[int] = set()
    until = time.perf_counter() + seconds
    measured: list[Measured] = []
    last = {True: 0.0, False: 0.0}
    runner.model.forward(_decodes(1, 0))  # touches for the first time what later ones only use
    for step in _steps(max_num_seqs, max_batch_tokens, max_model_len, context):
        work = _work(step)
        is_prefill = work[0] > work[1]
        # The last of its kind had a quarter of the work, or the same.
        if len(measured) >= 2 and time.perf_counter() + 4 * last[is_prefill] > until:
            break
        owners = np.repeat(step.slots, np.diff(step.query_start))
        written.update(table[owners, step.positions // block_size].tolist())
        began = time.perf_counter()
        runner.model.forward(step)
        last[is_prefill] = time.perf_counter() - began
        measured.append(Measured(work, max(last[is_prefill] * 1e6, 1.0)))
    for entry in written:
        arena[entry * KV_GRANULE : entry * KV_GRANULE + block_bytes] = 0
    table[:] = before
    return measured


def teach(runtime: _core.Runtime, model: int, measured: list[Measured]) -> None:
    """Tells the core what was measured, as often as it wants to hear before it trusts what it has learnt."""
    for _ in range(_MOST_TEACHING):
        if runtime.step_time(model).is_trained:
            return
        for step in measured:
            runtime.observe_step(model, step.work, step.micros)


def _steps(
    max_num_seqs: int, max_batch_tokens: int, max_model_len: int, context: int
) -> Iterator[StepInputs]:
    rows, tokens = 1, min(32, max_batch_tokens, max_model_len)
    most_rows, most_tokens = min(max_num_seqs, 64), min(max_batch_tokens, max_model_len)
    more = True
    while more:
        more = rows < most_rows or tokens < most_tokens
        yield _decodes(rows, 0)
        yield _prefill(tokens)
        yield _decodes(rows, context)
        rows, tokens = min(4 * rows, most_rows), min(4 * tokens, most_tokens)


def _decodes(rows: int, context: int) -> StepInputs:
    return StepInputs(
        tokens=np.zeros(rows, np.int32),
        positions=np.full(rows, context, np.int32),
        query_start=np.arange(rows + 1, dtype=np.int32),
        seq_lens=np.full(rows, context + 1, np.int32),
        slots=np.arange(rows, dtype=np.int32),
        logit_rows=np.arange(rows, dtype=np.int32),
    )


def _prefill(tokens: int) -> StepInputs:
    return StepInputs(
        tokens=np.zeros(tokens, np.int32),
        positions=np.arange(tokens, dtype=np.int32),
        query_start=np.array([0, tokens], np.int32),
        seq_lens=np.array([tokens], np.int32),
        slots=np.zeros(1, np.int32),
        logit_rows=np.array([tokens - 1], np.int32),
    )


def _work(step: StepInputs) -> tuple[int, int, int, float]:
    rows, tokens = len(step.slots), len(step.tokens)
    if tokens > rows:
        return tokens, rows, 0, tokens * tokens / 2
    return tokens, rows, int(step.seq_lens.sum()), 0.0
