"""What do the core's pieces cost where no binding can be measured apart from them?

Hash of 16 tokens; matching and taking a 48-block prompt, per block; dispatching the next tenant of many, and queueing
again. Builds bench_core.cc and runs it as often as there are turns: a row has the median turn. Times are those of the
thread, which others on the machine do not lengthen, unless by the caches that they share with it.

What the numbers do not mean: nothing about a whole step; see bench_step.

    python -m benches.bench_core --json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

from benches.common import ROOT, print_rows

DISPATCH = "dispatch of the next tenant's head"
MATCH = "match and take, per block"
MANY = "10,000 tenants, 20,000 waiting"
TARGETS_NS = {
    ("hash of 16 tokens", "chained, 8192 tokens"): 15.0,
    (MATCH, "hot: 1 chain"): 100.0,
    (MATCH, "cold: 4096 chains"): 300.0,
    (DISPATCH, MANY): 200.0,
    (DISPATCH, f"{MANY}, by prefixes within a quantum"): 200.0,
}


def build(folder: Path) -> Path:
    """The program, as optimised as the wheel's core. Raises CalledProcessError where it does not build."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(
        [*configure, "-DAIRI_BUILD_PYTHON=OFF", "-DAIRI_BUILD_BENCHES=ON"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    jobs = str(os.cpu_count() or 1)
    subprocess.run(
        ["cmake", "--build", str(folder), "--target", "bench_core", "--parallel", jobs],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder / "benches" / "bench_core"


def run(program: Path) -> list[dict[str, Any]]:
    """One row per question and variant. Raises CalledProcessError where the program finds a wrong answer."""
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def judged(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over turns of one question and variant, with its target if it has one."""
    row = dict(turns[0])
    for name in ("ns_p20", "ns_p50", "ns_p80"):
        row[name] = round(median(turn[name] for turn in turns), 1)
    limit = TARGETS_NS.get((row["question"], row["variant"]))
    if limit is None:
        return row
    return {**row, "target": f"ns_p50 <= {limit:g}", "reached": row["ns_p50"] <= limit}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "bench-core", help="where it is built")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    program = build(options.build)
    turns = [run(program) for _ in range(options.turns)]
    rows = [judged(list(same)) for same in zip(*turns, strict=True)]
    missing = TARGETS_NS.keys() - {(row["question"], row["variant"]) for row in rows}
    if missing:
        raise SystemExit(f"not measured: {sorted(missing)}")
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
