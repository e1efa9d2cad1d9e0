"""What does scheduling cost: per request and step when all decode, and to admit a request of 512 tokens?

AIRI's runtime through its binding against vLLM's own Scheduler with a stub executor, in turns in one run. With --core,
also the pieces that no binding can be measured apart from (benches/bench_core.cc says how to build it).

What the numbers do not mean: no model runs; a step's end-to-end time is mostly the model's. vLLM's admission starts
from a list of token ids and AIRI's from an int32 array: each from what its engine is handed.

    python -m benches.bench_scheduler --vllm-python ENV/bin/python --core build/bench/benches/bench_core
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from airi import _core
from airi.bench.scheduler import make_buffers, measure_scheduler
from benches.common import plain_parser, print_rows, run_contestant, verdict

TARGET_NS = 300.0
TARGET_ADMIT_US = 15.0
CORE_TARGETS_NS = {
    ("hash of 16 tokens", ""): 15.0,
    ("match and take, per block", "hot"): 100.0,
    ("match and take, per block", "cold"): 300.0,
    ("dispatch of the next tenant's head", "10,000"): 200.0,
}
PROMPT = 512
BLOCK = 16


def measure_admission(count: int) -> float:
    """Median microseconds from 512 tokens to a planned step that computes them, hashing included."""
    model = _core.ModelConfig(
        block_size=BLOCK,
        bytes_per_block=_core.GRANULE_BYTES,
        max_model_len=PROMPT + 8,
        max_num_seqs=count + 1,
        max_batch_tokens=8192,
    )
    slab = 1 << 20
    blocks = (count + 2) * (PROMPT // BLOCK + 1)
    config = _core.RuntimeConfig(
        arena_bytes=-(-blocks * _core.GRANULE_BYTES // slab) * slab, slab_bytes=slab, hash_key=bytes(16)
    )
    buffers = [make_buffers(count + 1, 8192, model) for _ in range(2)]
    runtime = _core.Runtime(config, [model], buffers)
    draw = np.random.default_rng(0)
    token, one, status = np.array([7], np.int32), np.ones(1, np.int32), np.zeros(1, np.uint8)
    times = []
    for i in range(count):
        prompt = draw.integers(1, 30000, PROMPT, dtype=np.int32)
        began = time.perf_counter_ns()
        admit = runtime.submit(request_id=i, model=0, tokens=prompt, max_new_tokens=1, arrival_us=i)
        info = runtime.step(i)
        times.append((time.perf_counter_ns() - began) / 1000)
        if admit != _core.Admit.ACCEPTED or info is None or info.num_tokens != PROMPT:
            raise SystemExit("the admission bench planned something else than one whole prompt")
        runtime.commit(info.step_id, token, one, status, 1)
    return statistics.median(times)


def measure_ours(running: list[int], steps: int) -> dict[str, Any]:
    """One turn of AIRI, in the form in which a contestant reports."""
    rows = measure_scheduler(running, steps=steps)
    return {
        "decode_ns": {str(r["running"]): r["ns_per_request_step"] for r in rows},
        "admit_us": measure_admission(200),
    }


def measure_core(binary: Path) -> list[dict[str, Any]]:
    """The rows of bench_core, each with its target where it has one."""
    done = subprocess.run([str(binary)], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        for (question, variant), target in CORE_TARGETS_NS.items():
            if row["question"] == question and variant in row["variant"]:
                row |= {"target": f"<= {target:g} ns", "reached": row["ns_p50"] <= target}
    return rows


def median_of(turns: list[dict[str, Any]], running: int) -> float:
    return float(statistics.median(t["decode_ns"][str(running)] for t in turns))


def compare(running: list[int], turns: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of medians over the turns, against the targets and, where it ran, against vLLM."""
    rows: list[dict[str, Any]] = []
    for count in running:
        ours = median_of(turns["airi"], count)
        row = {
            "question": "schedule and update, decoding",
            "variant": "airi, binding included",
            "running": count,
            "ns_per_request_step": round(ours, 1),
            "us_per_step": round(ours * count / 1000, 2),
        }
        if count in (256, 1024):
            row |= {"target": f"<= {TARGET_NS:g} ns", "reached": ours <= TARGET_NS}
        rows.append(row)
    admit = statistics.median(t["admit_us"] for t in turns["airi"])
    target = {"target": f"<= {TARGET_ADMIT_US:g} us", "reached": admit <= TARGET_ADMIT_US}
    rows.append({"question": "admit 512 tokens", "variant": "airi", "us": round(admit, 2), **target})
    if not turns["vllm"]:
        return rows
    for count in map(int, turns["vllm"][0]["decode_ns"]):
        ours, theirs = median_of(turns["airi"], count), median_of(turns["vllm"], count)
        name = f"schedule and update at {count} running against {turns['vllm'][0]['peer']}"
        rows.append(verdict(name, ours, theirs, 1.0, unit="ns per request and step", smaller_is_better=True))
    theirs = statistics.median(t["admit_us"] for t in turns["vllm"])
    rows.append(
        verdict("admit 512 tokens against vLLM", admit, theirs, 1.0, unit="us", smaller_is_better=True)
    )
    return rows


def main() -> None:
    parser = plain_parser(__doc__, "vllm")
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256, 1024, 16384])
    parser.add_argument("--peer-running", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--core", type=Path, metavar="PATH", help="the built bench_core")
    options = parser.parse_args()
    running = sorted({*options.running, *(options.peer_running if options.vllm_python else [])})
    turns: dict[str, list[dict[str, Any]]] = {"airi": [], "vllm": []}
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
        turns["airi"].append(measure_ours(running, options.steps))
        if options.vllm_python:
            counts = [str(n) for n in options.peer_running]
            arguments = ["--running", *counts, "--steps", str(min(options.steps, 64))]
            turns["vllm"].append(run_contestant(options.vllm_python, "vllm_scheduler", arguments))
    rows = compare(running, turns)
    if options.core:
        rows += measure_core(options.core)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
