"""How many requests does the simulator play in a minute, and does its memory depend on how many there are?

The trace is overlaid 64 times (every request as 64, spread until the next one) over 64 replicas: each gets about the
load of the whole trace. Left out, lengths and gaps are drawn like those of a chat service. Every request must finish
and every token be accounted for, else no speed is printed. Memory is the peak of the process after a quarter of the
requests and after all of them.

What the numbers do not mean: they hold for these lengths and this fleet; longer answers and fuller machines cost more
tokens per request. Under a router that looks at load, threads meet at every arrival: where others use the machine, they
wait for each other, and in the end one does all of it. `requests_per_minute` tells of that, `cpu_us_per_request` less.

    python -m benches.bench_simulator --trace azure_llm_2023_conv.csv.gz --json
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from airi.simulate import Batch, Report, SimulationOptions, Trace, simulate
from airi.simulate.batches import Stream, copied, limited
from benches.common import plain_parser, print_rows

TARGET_PER_MINUTE = 1_000_000
REPLICAS = 64


def drawn(requests: int, seed: int = 0) -> Stream:
    """Lengths and gaps drawn like those of a chat service: medians of about 1,000 and 130 tokens, 5.5 a second."""

    def batches() -> Iterator[Batch]:
        draw = np.random.default_rng(seed)
        start = 0.0
        for first in range(0, requests, 4096):
            rows = min(4096, requests - first)
            arrival = start + np.cumsum(draw.exponential(1e6 / 5.5, rows))
            start = float(arrival[-1])
            yield Batch(
                arrival_us=arrival.astype(np.int64),
                tenant=np.zeros(rows, np.int64),
                band=np.full(rows, 8, np.int32),
                input_tokens=np.clip(np.exp(draw.normal(6.9, 0.8, rows)), 4, 8000).astype(np.int32),
                output_tokens=np.clip(np.exp(draw.normal(4.9, 0.9, rows)), 1, 1000).astype(np.int32),
                part_start=np.zeros(rows + 1, np.int64),
                parts=np.zeros(0, np.int64),
            )

    return batches


def check(report: Report, requests: int, tokens: int) -> None:
    """Every request finished, and gave its tokens."""
    found = report.figures
    if found["requests"]["finished"] != requests or found["output_tokens"] != tokens:
        raise SystemExit(
            f"the simulation lost something: {found['requests']}, {found['output_tokens']} tokens"
        )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(stream: Stream, router: str, threads: int) -> dict[str, Any]:
    """One run, and how the memory grew over its second, third and fourth quarter."""
    sizes = [(len(b), int(b.output_tokens.sum())) for b in stream()]
    requests, tokens = REPLICAS * sum(n for n, _ in sizes), REPLICAS * sum(t for _, t in sizes)
    options = SimulationOptions(replicas=REPLICAS, router=router, threads=threads)
    quarter: list[float] = []

    def progress(done: int, _: float) -> None:
        if not quarter and done >= requests / 4:
            quarter.append(peak_mib())

    wall, cpu = time.perf_counter(), time.process_time()
    report = simulate(copied(stream, REPLICAS)(), options, progress=progress)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    check(report, requests, tokens)
    per_minute = round(requests / wall * 60)
    return {
        "question": "simulated requests per minute",
        "variant": f"{router}, {threads} threads",
        "replicas": REPLICAS,
        "requests": requests,
        "requests_per_minute": per_minute,
        "cpu_us_per_request": round(cpu / requests * 1e6, 1),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "steps": report.figures["steps"],
        "tokens": tokens,
        "peak_mib_at_a_quarter": round(quarter[0], 1),
        "peak_mib": round(peak_mib(), 1),
        "target": f">= {TARGET_PER_MINUTE:,}",
        "reached": per_minute >= TARGET_PER_MINUTE,
    }


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--trace", type=Path, help="left out: drawn requests")
    parser.add_argument("--requests", type=int, default=16_384, help="of the trace, before it is overlaid")
    parser.add_argument("--routers", nargs="+", default=["round_robin", "least_loaded", "prefix"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    stream = drawn(options.requests) if options.trace is None else Trace(options.trace).batches
    rows = []
    for router in options.routers:
        print(router, file=sys.stderr)
        rows.append(measure(limited(stream, options.requests), router, options.threads))
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
