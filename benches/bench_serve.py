"""Over HTTP, 64 requests sent at once: how long to the first token, and how even are the tokens after it?

`airi serve` against `vllm serve`, in turn, each loaded by the client of `airi bench serve`: 64 streamed completions
of 256 random tokens in and 128 out. p99 inter-token latency is over all gaps of all streams, time to first token is the
mean. The client shares the machine with the server, as it does for the peer.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from airi.bench.serve import Load, measure_serve
from airi.bench.server import free_port
from airi.bench.workload import Workload
from benches.checkpoint import bench_checkpoint
from benches.common import bench_parser, print_rows, verdict
from benches.servers import airi_command, first_token, serving, vllm_command

MODEL = "bench"
REQUESTS = 64
VOCAB = 40_000


def load_once(command: list[str], port: int, log: Path, seed: int) -> dict[str, Any]:
    """Starts a server, warms it with one request, and returns the client's row."""
    workload = Workload(requests=REQUESTS, input_len=256, output_len=128, vocab=VOCAB, seed=seed)
    with serving(command, port, log) as server:
        first_token(server, timeout_s=600)
        row = measure_serve(server.url, workload, Load(), model=MODEL)
    if row["failed"] or row["output_tokens"] != REQUESTS * workload.output_len:
        raise RuntimeError(f"{row['failed']} requests failed, {row['output_tokens']} tokens came")
    return row


def main() -> None:
    options = bench_parser(__doc__, "vllm").parse_args()
    model = bench_checkpoint(options.work)
    log = (options.work / "server.log").resolve()
    found: dict[str, list[dict[str, Any]]] = {"airi": [], "vllm": []}
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
        port = free_port()
        found["airi"].append(load_once(airi_command(model, port), port, log, turn))
        if options.vllm_python:
            port = free_port()
            found["vllm"].append(load_once(vllm_command(options.vllm_python, model, port), port, log, turn))
    figures = ("itl_ms_p99", "ttft_ms_mean", "output_tok_s")
    middle = {
        name: {key: statistics.median(row[key] for row in rows) for key in figures}
        for name, rows in found.items()
        if rows
    }
    rows: list[dict[str, Any]] = [
        {"question": "64 requests at once", "variant": n, **m} for n, m in middle.items()
    ]
    if "vllm" in middle:
        ours, theirs = middle["airi"], middle["vllm"]
        for key, target in (("itl_ms_p99", 0.35), ("ttft_ms_mean", 0.6)):
            rows.append(
                verdict(
                    f"{key} against vLLM", ours[key], theirs[key], target, unit="ms", smaller_is_better=True
                )
            )
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
