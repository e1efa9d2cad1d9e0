"""How long is a whole step at 256 running requests, with every policy on, while requests come and go?

Each request brings a prompt of 512 tokens, the first half of which its tenant has sent before, and ends after 32 to 96
tokens; for each that ends another comes, and many wait. AIRI's runtime against vLLM's own Scheduler with a stub
executor, in turns in one run. Then: what 100,000 tenants leave behind that have sent one request each; and the steps in
which a prefix is published that all requests wait for, 1,000 or 10,000 of them.

Times are those of the thread that schedules (`cpu`), which others on the machine do not lengthen, and those on the
clock (`wall`). What the numbers do not mean: no model runs; vLLM has fewer policies, and no tenants.

    python -m benches.bench_step --vllm-python ENV/bin/python
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from airi import _core
from airi.bench.rows import percentile
from airi.bench.scheduler import make_buffers
from benches.common import plain_parser, print_rows, run_contestant, verdict
from benches.contestants.churn import OUTPUT, PROMPT, RUNNING, SHARED, STEP_US, WARM_STEPS
from benches.virtual_airi import Policy, every_policy

TARGET_P50_US, TARGET_P99_US, TARGET_ADMIT_US = 60.0, 150.0, 15.0
TARGET_GROWTH = 1 << 20
TARGET_DEPTH = 3.0
BATCH_TOKENS = 8192
BLOCK = 16
MANY_TENANTS = 100_000
PREFIX_STEPS = 200
TOKEN = np.full(RUNNING, 7, np.int32)
SLAB_BLOCKS = 256
QUOTAS = 8
"""So many tenants keep a hundredth of the memory each."""


@dataclass(slots=True)
class Times:
    """Microseconds of each step and of each admission."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    submit: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        found = {
            f"{name}_us_p{q}": percentile(getattr(self, name), q)
            for name in ("cpu", "wall")
            for q in (50, 99)
        }
        return found | {"submit_us_p50": percentile(self.submit, 50)}


def make_runtime(
    policy: Policy, *, max_queued: int, host_tier: bool
) -> tuple[list[_core.StepBuffers], _core.Runtime]:
    """A runtime whose memory is twice what runs in it; some of its tenants keep a part of that."""
    model = _core.ModelConfig(
        block_size=BLOCK,
        bytes_per_block=_core.GRANULE_BYTES,
        max_model_len=PROMPT + OUTPUT[1],
        max_num_seqs=RUNNING,
        max_batch_tokens=BATCH_TOKENS,
        min_slabs=1,
        **policy.model_settings,
    )
    slab = SLAB_BLOCKS * _core.GRANULE_BYTES
    blocks = 2 * RUNNING * (PROMPT + OUTPUT[1]) // BLOCK
    slabs = -(-blocks // SLAB_BLOCKS)
    config = _core.RuntimeConfig(
        arena_bytes=slabs * slab,
        slab_bytes=slab,
        hash_key=bytes(16),
        max_queued=max_queued,
        host_bytes=slabs * slab if host_tier else 0,
        **policy.runtime,
    )
    buffers = [make_buffers(RUNNING, BATCH_TOKENS, model) for _ in range(3)]
    runtime = _core.Runtime(config, [model], buffers)
    for tenant in range(QUOTAS):
        runtime.set_kv_quota(tenant, 0, blocks // 100)
    return buffers, runtime


class Churn:
    """A runtime whose slots are always full, with a queue of `waiting` requests of `tenants` tenants."""

    def __init__(
        self,
        *,
        tenants: int,
        waiting: int,
        steps: int,
        records: int | None = None,
        one_prefix: bool = False,
        host_tier: bool = False,
    ) -> None:
        """`records`: how many decisions and KV events are kept; None leaves that to the policy.

        With `host_tier` a step stores as many of the blocks that will be needed for others as it has places for, 64.

        With `one_prefix` all prompts begin alike, as of an engine that has just been started: the first measured step
        is the one after that in which all requests came.
        """
        self._draw = np.random.default_rng(0)
        policy = every_policy()
        if records is not None:
            policy.runtime.update(decision_records=records, kv_event_records=records)
        self._buffers, self._runtime = make_runtime(policy, max_queued=waiting + RUNNING, host_tier=host_tier)
        self._heads = self._draw.integers(1, 30000, (tenants, SHARED), dtype=np.int32)
        if one_prefix:
            self._heads[:] = self._heads[0]
        self._tails = self._draw.integers(1, 30000, (4096, PROMPT - SHARED), dtype=np.int32)
        self._sent = 0
        self._now = 0
        self._times = Times()
        self._rows: list[int] = []
        self._in_flight: _core.StepInfo | None = None
        self._status = np.zeros(RUNNING, np.uint8)
        for _ in range(waiting + RUNNING):
            self._submit()
        self._run(1 if one_prefix else WARM_STEPS)
        self._times, self._rows = Times(), []
        self._run(steps)
        if self._rows[-1 if one_prefix else self._rows.index(min(self._rows))] < RUNNING * 3 // 4:
            raise SystemExit(f"a step had {min(self._rows)} rows; this would measure something else")

    @property
    def times(self) -> Times:
        return self._times

    def _submit(self) -> None:
        tenant = self._sent % len(self._heads)
        tail = self._tails[self._sent % len(self._tails)]
        prompt = np.concatenate([self._heads[tenant], tail])
        prompt[SHARED] = self._sent  # no prompt comes twice
        output = int(self._draw.integers(OUTPUT[0], OUTPUT[1], endpoint=True))
        began = time.thread_time_ns()
        admit = self._runtime.submit(
            request_id=self._sent,
            model=0,
            tenant=tenant,
            tokens=prompt,
            max_new_tokens=output,
            arrival_us=self._now,
        )
        self._times.submit.append((time.thread_time_ns() - began) / 1000)
        if admit != _core.Admit.ACCEPTED:
            raise SystemExit(f"request {self._sent} was refused: {admit.name}")
        self._sent += 1

    def _run(self, steps: int) -> None:
        """Each step is planned while the one before it runs; the time of a step is that of its two calls."""
        for _ in range(steps):
            self._now += STEP_US
            cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
            info = self._runtime.step(self._now)
            cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
            if info is None:
                raise SystemExit("the runtime has nothing to do")
            self._rows.append(info.num_rows)
            self._copy(info)
            if self._in_flight is not None:
                more_cpu, more_wall = self._commit(self._in_flight)
                self._times.cpu.append((cpu + more_cpu) / 1000)
                self._times.wall.append((wall + more_wall) / 1000)
            self._in_flight = info
            for _ in range(len(self._runtime.drain_events())):
                self._submit()

    def _copy(self, info: _core.StepInfo) -> None:
        """Says of every transfer of a step that it has ended."""
        ops = self._buffers[info.buffer].ops[: info.num_ops]
        ids = ops[ops[:, 1] >= 0, 1].copy()
        if len(ids):
            self._runtime.complete_transfers(
                ids, np.ones(len(ids), np.bool_), np.full(len(ids), 100, np.int64)
            )

    def _commit(self, info: _core.StepInfo) -> tuple[int, int]:
        """Nanoseconds of the thread and of the clock."""
        flags = self._buffers[info.buffer].row_flags[: info.num_rows]
        counts = (flags & _core.ROW_SAMPLE).astype(np.int32)
        tokens, status = TOKEN[: int(counts.sum())], self._status[: info.num_rows]
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        self._runtime.commit(info.step_id, tokens, counts, status, STEP_US)
        return time.thread_time_ns() - cpu, time.perf_counter_ns() - wall


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def one_request_tenants(count: int) -> tuple[int, int]:
    """Bytes by which the process grows while `count` tenants have one request served, and while as many others have."""
    model = _core.ModelConfig(
        block_size=BLOCK,
        bytes_per_block=_core.GRANULE_BYTES,
        max_model_len=64,
        max_num_seqs=64,
        max_batch_tokens=2048,
    )
    settings = every_policy().runtime | {"steps_ahead": 0}
    config = _core.RuntimeConfig(
        arena_bytes=1 << 20, slab_bytes=1 << 20, hash_key=bytes(16), max_queued=1024, **settings
    )
    buffers = [make_buffers(64, 2048, model) for _ in range(2)]
    runtime = _core.Runtime(config, [model], buffers)
    prompt, status = np.arange(1, 33, dtype=np.int32), np.zeros(64, np.uint8)
    sizes = [resident_bytes()]
    for tenant in range(2 * count):
        runtime.submit(
            request_id=tenant, model=0, tenant=tenant, tokens=prompt, max_new_tokens=1, arrival_us=tenant
        )
        served_now = (tenant + 1) % 512 == 0 or (tenant + 1) % count == 0
        while served_now and (info := runtime.step(tenant)) is not None:
            flags = buffers[info.buffer].row_flags[: info.num_rows]
            counts = (flags & _core.ROW_SAMPLE).astype(np.int32)
            runtime.commit(info.step_id, TOKEN[: int(counts.sum())], counts, status[: info.num_rows], 1)
        if served_now:
            runtime.drain_events()
        if (tenant + 1) % count == 0:
            sizes.append(resident_bytes())
    if runtime.has_work():
        raise SystemExit("a request was not served")
    return sizes[1] - sizes[0], sizes[2] - sizes[1]


def memory_row(count: int) -> dict[str, Any]:
    first, second = one_request_tenants(count)
    return {
        "question": f"memory after {count:,} tenants of one request, and what as many again add",
        "variant": "airi",
        "first_bytes": first,
        "second_bytes": second,
        "target": f"<= {TARGET_GROWTH} bytes more",
        "reached": second <= TARGET_GROWTH,
    }


def shared_prefix_rows(turns: int, steps: int) -> list[dict[str, Any]]:
    found: dict[int, list[dict[str, float]]] = {1_000: [], 10_000: []}
    for _ in range(turns):
        for waiting, summaries in found.items():
            times = Churn(tenants=16, waiting=waiting, steps=steps, one_prefix=True).times
            summaries.append({**times.summary(), "cpu_us_max": max(times.cpu)})
    rows = [
        {
            **row_of(f"airi, {waiting:,} waiting for one prefix", summaries),
            "question": "step, prefix published",
        }
        for waiting, summaries in found.items()
    ]
    shallow, deep = (row["cpu_us_max"] for row in rows)
    name = "longest step with 10,000 that wait for one prefix against 1,000"
    return [*rows, verdict(name, deep, shallow, TARGET_DEPTH, unit="us", smaller_is_better=True)]


def row_of(variant: str, turns: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the turns."""
    figures = {name: round(median(turn[name] for turn in turns), 2) for name in turns[0]}
    return {
        "question": f"whole step at {RUNNING} running, requests come and go",
        "variant": variant,
        **figures,
    }


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its targets; an admission is a submit and its share of a step, so submit alone must be below."""
    limits = {"cpu_us_p50": TARGET_P50_US, "cpu_us_p99": TARGET_P99_US, "submit_us_p50": TARGET_ADMIT_US}
    target = ", ".join(f"{name} <= {limit:g}" for name, limit in limits.items())
    return {**row, "target": target, "reached": all(row[name] <= limit for name, limit in limits.items())}


def main() -> None:
    parser = plain_parser(__doc__, "vllm")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--peer-steps", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    memory = memory_row(MANY_TENANTS)  # first: later, memory that others have freed would hide it
    variants: dict[str, dict[str, Any]] = {
        "airi, 16 tenants, 1,024 waiting": {"tenants": 16, "waiting": 1024},
        "airi, 10,000 tenants, 10,000 waiting": {"tenants": 10_000, "waiting": 10_000},
        "airi, 16 tenants, 1,024 waiting, host tier": {"tenants": 16, "waiting": 1024, "host_tier": True},
    }
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    theirs: list[dict[str, float]] = []
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
        for name, load in variants.items():
            turns[name].append(Churn(**load, steps=options.steps).times.summary())
        if options.vllm_python:
            answer = run_contestant(options.vllm_python, "vllm_step", ["--steps", str(options.peer_steps)])
            peer = answer.pop("peer")
            theirs.append(answer)
    rows = [judged(row_of(name, found)) for name, found in turns.items()]
    if theirs:
        row = row_of(peer, theirs)
        name, ours = "whole step against vLLM", rows[0]["cpu_us_p50"]
        rows.append(row)
        rows.append(verdict(name, ours, row["cpu_us_p50"], 1.0, unit="us", smaller_is_better=True))
    rows += [memory, *shared_prefix_rows(options.turns, PREFIX_STEPS)]
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
