"""What do decision records and KV events cost a step at 256 running requests?

Rings of 16,384 records each against none, in turns in one run: while all decode (as in bench_scheduler; a KV event per
block that becomes full), and while requests come and go (as in bench_step; some 70 blocks a step are stored and as
many evicted, each an event). The difference is the median over turns of the difference within a turn. What the numbers
do not mean: nothing is read meanwhile (a reader shares no lock with the writer, but its cache lines).

    python -m benches.bench_records
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from airi.bench.scheduler import measure_scheduler
from benches.bench_step import Churn
from benches.common import plain_parser, print_rows

RECORDS = 1 << 14


def decoding(records: int, steps: int) -> float:
    """Microseconds of a step in which 256 requests decode."""
    return float(str(measure_scheduler((256,), steps=steps, records=records)[0]["us_per_step"]))


def churning(records: int, steps: int) -> float:
    """Microseconds of the scheduling thread of a step while requests come and go."""
    return Churn(tenants=16, waiting=1024, steps=steps, records=records).times.summary()["cpu_us_p50"]


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    measures: dict[str, Callable[[int, int], float]] = {
        "all decode": decoding,
        "requests come and go": churning,
    }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in measures}
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
        order = (0, RECORDS) if turn % 2 == 0 else (RECORDS, 0)
        for name, measure in measures.items():
            found = {records: measure(records, options.steps) for records in order}
            turns[name].append((found[0], found[RECORDS]))
    rows: list[dict[str, Any]] = []
    for name, pairs in turns.items():
        rows.append(
            {
                "question": f"median step at 256 running, {name}",
                "without_us": round(median(plain for plain, _ in pairs), 2),
                "with_us": round(median(recorded for _, recorded in pairs), 2),
                "difference_us": round(median(recorded - plain for plain, recorded in pairs), 2),
            }
        )
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
