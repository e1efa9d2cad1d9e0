"""How long from process start to the first token over HTTP, for the 135 M model?

`airi serve` against `vllm serve`, each started afresh in turn. The file cache is warm for both: what is measured is the
engine's own start, not the disk.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from airi.bench.server import free_port
from benches.checkpoint import bench_checkpoint
from benches.common import bench_parser, print_rows, verdict
from benches.servers import airi_command, first_token, serving, vllm_command

TARGET_S = 6.0


def start_once(command: list[str], port: int, log: Path) -> float:
    """Seconds to the first token of one fresh start."""
    with serving(command, port, log) as server:
        return first_token(server, timeout_s=600)


def main() -> None:
    options = bench_parser(__doc__, "vllm").parse_args()
    model = bench_checkpoint(options.work)
    log = (options.work / "server.log").resolve()
    seconds: dict[str, list[float]] = {"airi": [], "vllm": []}
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
        port = free_port()
        seconds["airi"].append(start_once(airi_command(model, port), port, log))
        if options.vllm_python:
            port = free_port()
            seconds["vllm"].append(start_once(vllm_command(options.vllm_python, model, port), port, log))
    ours = statistics.median(seconds["airi"])
    rows: list[dict[str, Any]] = [
        {
            "question": "process start to first token",
            "ours_s": round(ours, 2),
            "target": f"<= {TARGET_S} s",
            "reached": ours <= TARGET_S,
            "n": options.turns,
        }
    ]
    if seconds["vllm"]:
        theirs = statistics.median(seconds["vllm"])
        rows.append(verdict("start against vLLM", ours, theirs, 1.0, unit="s", smaller_is_better=True))
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
