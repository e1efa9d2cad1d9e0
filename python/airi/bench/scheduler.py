"""What does the scheduling core cost per request and step, when every request decodes?

A step plans one token for each running request and commits it; both calls into the core are in the time, the model
is not. What the figures do not mean: nothing about prefill, preemption or several models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from airi import _core
from airi.bench.rows import Row, percentile
from airi.engine.runner import StepArrays
from airi.errors import ConfigError

__all__ = ["RUNNING", "make_buffers", "measure_scheduler"]

RUNNING = (1, 64, 256, 1024)
"""Numbers of running requests that are measured unless others are named."""

_BLOCK = 16
_PROMPT = 128
_BATCH_TOKENS = 8192
_SLAB_BYTES = 1 << 20
_ROUND_STEPS = 32
_MOST_OPS = 64
"""Memory operations of a step."""


def measure_scheduler(
    running: Sequence[int] = RUNNING,
    *,
    steps: int = 512,
    records: int = 0,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Row]:
    """One row per number of running requests: nanoseconds per request and step, over rounds of 32 steps.

    `records`: how many decisions and KV events the core keeps meanwhile.
    """
    for name, value in (("running", min(running, default=0)), ("steps", steps)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1", field=name)
    rows = []
    for count in running:
        rounds = _Decoding(count, steps, records).time_rounds()
        rows.append(
            {
                "bench": "scheduler",
                "running": count,
                "steps": len(rounds) * _ROUND_STEPS,
                "ns_per_request_step": round(percentile(rounds, 50) / count, 1),
                "ns_p20": round(percentile(rounds, 20) / count, 1),
                "ns_p80": round(percentile(rounds, 80) / count, 1),
                "us_per_step": round(percentile(rounds, 50) / 1000, 2),
            }
        )
        on_done(1)
    return rows


class _Decoding:
    """A runtime in which `running` requests have been prefilled and decode for at least `steps` steps."""

    def __init__(self, running: int, steps: int, records: int) -> None:
        self._running = running
        self._num_rounds = max(1, -(-steps // _ROUND_STEPS))
        self._now_us = 0
        # The first requests decode while the last are prefilled; that must not end them early.
        prefill_steps = 2 * (running * _PROMPT // _BATCH_TOKENS) + 4
        length = _PROMPT + prefill_steps + (self._num_rounds + 1) * _ROUND_STEPS
        model = _model(running, length)
        self._buffers = [make_buffers(running, _batch_tokens(running), model) for _ in range(2)]
        self._runtime = _core.Runtime(_config(running, length, records), [model], self._buffers)
        draw = np.random.default_rng(0)
        for request_id in range(running):
            admitted = self._runtime.submit(
                request_id=request_id,
                model=0,
                tokens=draw.integers(1, 30000, _PROMPT, dtype=np.int32),
                max_new_tokens=length - _PROMPT,
                arrival_us=0,
            )
            if admitted != _core.Admit.ACCEPTED:
                raise RuntimeError(f"request {request_id} of {running} was not admitted: {admitted.name}")
        self._tokens = np.full(running, 7, np.int32)
        self._status = np.zeros(running, np.uint8)
        while self._prefill():
            pass

    def time_rounds(self) -> list[float]:
        """Nanoseconds per step of each round, after one round that is not counted."""
        counts = np.ones(self._running, np.int32)
        self._time_round(counts)
        return [self._time_round(counts) for _ in range(self._num_rounds)]

    def _time_round(self, counts: np.ndarray[tuple[int], np.dtype[np.int32]]) -> float:
        runtime, tokens, status = self._runtime, self._tokens, self._status
        began = time.perf_counter_ns()
        for _ in range(_ROUND_STEPS):
            self._now_us += 1000
            info = runtime.step(self._now_us)
            if info is None or info.num_rows != self._running:
                raise RuntimeError("a running request was left out of a step")
            runtime.commit(info.step_id, tokens, counts, status, 1000)
        return (time.perf_counter_ns() - began) / _ROUND_STEPS

    def _prefill(self) -> bool:
        """One step of prefill; False once every request decodes."""
        self._now_us += 1000
        info = self._runtime.step(self._now_us)
        if info is None:
            raise RuntimeError("the runtime has nothing to do")
        flags = self._buffers[info.buffer].row_flags[: info.num_rows]
        counts = (flags & _core.ROW_SAMPLE).astype(np.int32)
        sampled = int(counts.sum())
        self._runtime.commit(
            info.step_id, self._tokens[:sampled], counts, self._status[: info.num_rows], 1000
        )
        return info.num_decodes < self._running


def _blocks(length: int) -> int:
    return -(-length // _BLOCK)


def _batch_tokens(running: int) -> int:
    # Decodes never leave the prefill of the last requests without budget.
    return running + _BATCH_TOKENS


def _model(running: int, length: int) -> _core.ModelConfig:
    return _core.ModelConfig(
        block_size=_BLOCK,
        bytes_per_block=_core.GRANULE_BYTES,
        max_model_len=length,
        max_num_seqs=running,
        max_batch_tokens=_batch_tokens(running),
    )


def _config(running: int, length: int, records: int) -> _core.RuntimeConfig:
    # Room for every request to its end and a slab to spare: nothing is preempted.
    needed = (running * _blocks(length) + 1) * _core.GRANULE_BYTES
    slabs = -(-needed // _SLAB_BYTES) + 1
    return _core.RuntimeConfig(
        arena_bytes=slabs * _SLAB_BYTES,
        slab_bytes=_SLAB_BYTES,
        hash_key=bytes(16),
        max_queued=running,
        decision_records=records,
        kv_event_records=records,
    )


def make_buffers(rows: int, batch_tokens: int, model: _core.ModelConfig) -> _core.StepBuffers:
    """One set of step buffers for a lone `model` with that many slots."""
    return StepArrays.allocate(rows, batch_tokens, model.max_deltas, _MOST_OPS).as_buffers()
