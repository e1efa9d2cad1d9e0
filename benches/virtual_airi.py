"""AIRI's runtime behind the loop of virtual time."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from airi import _core
from airi.bench.scheduler import make_buffers
from benches.virtual_time import (
    PLAIN_TOKEN,
    STOP_TOKEN,
    Ints,
    Outcome,
    Setup,
    Trace,
    Work,
    drive,
    work_of,
)

BANDS = 4
_STOP_IDS = np.array([STOP_TOKEN], np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Settings of the core beyond what both sides are given; MAX_UTIL is the engine's default."""

    model: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    host_blocks: int = 0
    """Of host memory, with `host_us_per_block` for a copy of one."""
    host_us_per_block: float = 0.0
    num_models: int = 1
    """With more than one, all alike, the tenant of a request says whose it is."""

    @classmethod
    def with_targets(cls, *, ttft_us: int | None, itl_us: int | None) -> Policy:
        """Latency targets for all requests, and nothing else."""
        return cls(model={"targets": [(ttft_us, itl_us)]})

    @property
    def model_settings(self) -> dict[str, Any]:
        return {"admission": _core.Admission.MAX_UTIL, **self.model}


def every_policy() -> Policy:
    """All that the core can do at once, at settings that one might run with."""
    return Policy(
        model={"targets": [(1_000_000, 50_000)] * BANDS},
        runtime={
            "num_bands": BANDS,
            "aging_us": 30_000_000,
            "bypass_tokens": 4096,
            "fairness_gap_tokens": 16_384,
            "locality_quantum_tokens": 16_384,
            "dedupe_steps": 128,
            "steps_ahead": 1,
            "decision_records": 1 << 14,
            "kv_event_records": 1 << 14,
        },
    )


class _Copies:
    """Copies between device and host, one after the other in each direction, beside the steps."""

    def __init__(self, runtime: _core.Runtime, us_per_block: float) -> None:
        self._runtime = runtime
        self._us_per_block = us_per_block
        self._free_us: dict[int, float] = {}
        self._running: list[tuple[float, int]] = []
        """(end, transfer), by end."""

    @property
    def next_end_us(self) -> int | None:
        return math.ceil(self._running[0][0]) if self._running else None

    def begin(self, ops: npt.NDArray[np.int64], now_us: int) -> None:
        for kind, transfer in ops[:, :2].tolist():
            end = max(self._free_us.get(kind, 0.0), now_us) + self._us_per_block
            self._free_us[kind] = end
            heapq.heappush(self._running, (end, transfer))

    def report(self, now_us: int) -> None:
        ended = []
        while self._running and self._running[0][0] <= now_us:
            ended.append(heapq.heappop(self._running)[1])
        if ended:
            micros = np.full(len(ended), round(self._us_per_block), np.int64)
            self._runtime.complete_transfers(np.array(ended, np.int64), np.ones(len(ended), np.bool_), micros)


class AiriScheduler:
    """A runtime whose sampled tokens end each request where the trace says."""

    def __init__(self, trace: Trace, setup: Setup, policy: Policy) -> None:
        model = _core.ModelConfig(
            block_size=setup.block_size,
            bytes_per_block=_core.GRANULE_BYTES,
            max_model_len=setup.max_model_len,
            max_num_seqs=setup.max_num_seqs,
            max_batch_tokens=setup.max_batch_tokens,
            **policy.model_settings,
        )
        arena_bytes = setup.kv_blocks * _core.GRANULE_BYTES
        config = _core.RuntimeConfig(
            arena_bytes=arena_bytes,
            hash_key=bytes(16),
            max_queued=max(len(trace), 1),
            steps_ahead=setup.steps_ahead,
            host_bytes=policy.host_blocks * _core.GRANULE_BYTES,
            host_bytes_per_us=_core.GRANULE_BYTES / max(policy.host_us_per_block, 1e-3),
            **{"slab_bytes": arena_bytes, **policy.runtime},
        )
        rows, tokens = setup.max_num_seqs, setup.max_batch_tokens
        self._buffers = [make_buffers(rows, tokens, model) for _ in range(2 + setup.steps_ahead)]
        self.runtime = _core.Runtime(config, [model] * policy.num_models, self._buffers)
        self._trace = trace
        none = np.zeros(len(trace), np.int64)
        self._model: Ints = none if policy.num_models == 1 else trace.tenant
        self._tenant: Ints = trace.tenant if policy.num_models == 1 else none
        self._emitted = np.zeros(len(trace), np.int64)
        self._planned: deque[_core.StepInfo] = deque()
        self._ok = np.zeros(rows, np.uint8)
        self._cached = np.zeros(len(trace), np.int64)
        self._copies = _Copies(self.runtime, policy.host_us_per_block)

    @property
    def cached(self) -> Ints:
        return self._cached

    @property
    def preemptions(self) -> int:
        return sum(stats.preemptions for stats in self.runtime.stats())

    @property
    def waits_until_us(self) -> int | None:
        """When the next copy between device and host has ended."""
        return self._copies.next_end_us

    def submit(self, index: int) -> None:
        trace = self._trace
        admit = self.runtime.submit(
            request_id=index,
            model=int(self._model[index]),
            tenant=int(self._tenant[index]),
            tokens=trace.prompt(index),
            max_new_tokens=int(trace.max_tokens[index]),
            stop_ids=_STOP_IDS,
            arrival_us=int(trace.arrival_us[index]),
        )
        if admit != _core.Admit.ACCEPTED:
            raise ValueError(f"request {index} was refused: {admit.name}")

    def plan(self, now_us: int) -> Work | None:
        self._copies.report(now_us)
        info = self.runtime.step(now_us)
        if info is None:
            return None
        self._planned.append(info)
        buffers = self._buffers[info.buffer]
        if info.num_ops:
            self._copies.begin(buffers.ops[: info.num_ops], now_us)
        queries = np.diff(buffers.query_start[: info.num_rows + 1])
        return work_of(queries, buffers.seq_lens[: info.num_rows])

    def planned_rows(self) -> tuple[Ints, npt.NDArray[np.uint8], Ints]:
        """Of the step planned last: request, flags, and how many of its tokens were computed before."""
        info = self._planned[-1]
        buffers, rows = self._buffers[info.buffer], slice(info.num_rows)
        queries = np.diff(buffers.query_start[: info.num_rows + 1])
        computed = (buffers.seq_lens[rows] - queries).astype(np.int64)
        return buffers.request_ids[rows].copy(), buffers.row_flags[rows].copy(), computed

    def commit(self, device_us: int) -> Ints:
        info = self._planned.popleft()
        buffers = self._buffers[info.buffer]
        counts = (buffers.row_flags[: info.num_rows] & _core.ROW_SAMPLE).astype(np.int32)
        sampled = buffers.request_ids[: info.num_rows][counts > 0]
        self._emitted[sampled] += 1
        past_end = self._emitted[sampled] - self._trace.output[sampled]
        tokens = np.where(past_end == 0, STOP_TOKEN, PLAIN_TOKEN).astype(np.int32)
        self.runtime.commit(info.step_id, tokens, counts, self._ok[: info.num_rows], device_us)
        if (past_end == 0).any():
            events = self.runtime.drain_events()
            self._cached[events["request_id"]] = events["num_cached_tokens"]
        # A step that was planned before the stop token was known brings one more, which nobody sees.
        return sampled[past_end <= 0]


def run_airi(trace: Trace, setup: Setup, policy: Policy | None = None) -> Outcome:
    """The trace through AIRI's runtime."""
    return drive(AiriScheduler(trace, setup, policy or Policy()), trace, setup)
