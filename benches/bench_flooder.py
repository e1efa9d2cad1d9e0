"""What do normal tenants notice of one that sends ten times what all of them send together?

AIRI's runtime with its ledger of tenants against vLLM's Scheduler, which serves in order of arrival, under virtual
time with the same step-time model. The flooder sends copies of the normal tenants' requests, each with a prompt of its
own, spread evenly over the time. Beside it: how far the service of tenants that all had to wait came apart, and the
most that it may: what one dispatch can grant; or, where the gap is a setting, that and what one step can charge.

What the numbers do not mean: no model runs, and the time that a scheduler takes itself is not in them.

    python -m benches.bench_flooder --trace servegen_msmall_8rps_30min.csv.gz --vllm-python ENV/bin/python
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from airi.bench.rows import percentile
from benches.common import plain_parser, print_rows, verdict
from benches.virtual_airi import AiriScheduler, Policy
from benches.virtual_ledger import LedgerWatch
from benches.virtual_peer import VllmPeer
from benches.virtual_time import Outcome, Trace, drive, make_trace
from benches.virtual_traces import preset_setup, read_trace

TARGET_RATIO = 0.2
QUESTION = "normal tenants beside a flooder"


def with_flooder(trace: Trace, times: int, *, seed: int) -> Trace:
    """The trace, and `times` its load from a tenant of its own."""
    draw = np.random.default_rng(seed)
    count = len(trace)
    copied = np.concatenate([draw.permutation(count) for _ in range(times)])
    first, last = int(trace.arrival_us[0]), int(trace.arrival_us[-1])
    flooded = np.linspace(first, last, len(copied)).astype(np.int64)
    flooder = int(trace.tenant.max()) + 1
    return make_trace(
        np.concatenate([trace.arrival_us, flooded]),
        np.concatenate([trace.prompt_len, trace.prompt_len[copied]]),
        np.concatenate([trace.output, trace.output[copied]]),
        tenant=np.concatenate([trace.tenant, np.full(len(copied), flooder)]),
    )


def figures(outcome: Outcome) -> dict[str, float]:
    """Times to the first token of the normal tenants and of the flooder, and what was served in all."""
    trace = outcome.trace
    flooder = trace.tenant == trace.tenant.max()
    normal = (outcome.ttft_us[~flooder] / 1000).tolist()
    by_tenant = [
        percentile((outcome.ttft_us[trace.tenant == t] / 1000).tolist(), 99)
        for t in np.unique(trace.tenant[~flooder])
    ]
    found = {
        "ttft_ms_p50": percentile(normal, 50),
        "ttft_ms_p99": percentile(normal, 99),
        "ttft_ms_p99_median_tenant": median(by_tenant),
        "ttft_ms_p99_worst_tenant": max(by_tenant),
        "flooder_ttft_ms_p50": percentile((outcome.ttft_us[flooder] / 1000).tolist(), 50),
        "itl_ms_p99": percentile((outcome.gaps_us(~flooder) / 1000).tolist(), 99),
        "tok_s": int((trace.prompt_len + trace.output).sum()) / (int(outcome.finish_us.max()) / 1e6),
    }
    return {name: round(value, 1) for name, value in found.items()}


def gap_row(variant: str, watch: LedgerWatch, most: int | None) -> dict[str, Any]:
    """How far service came apart, against what is promised."""
    bound = watch.bound if most is None else min(watch.bound, most + watch.step_charge)
    return {
        "question": "service gap of waiting tenants, tokens",
        "variant": variant,
        "gap": round(watch.gap),
        "bound": round(bound),
        "reached": watch.gap <= bound,
    }


def main() -> None:
    parser = plain_parser(__doc__, "vllm")
    parser.add_argument("--trace", type=Path, required=True, help="ServeGen, CSV with tenants")
    parser.add_argument("--seconds", type=float, default=300, help="of the trace, from its start")
    parser.add_argument("--times", type=int, default=10, help="the flooder's load over that of all others")
    parser.add_argument(
        "--gap-tokens", type=int, default=4096, help="of the run in which the gap is a setting"
    )
    options = parser.parse_args()
    normal = read_trace(options.trace).until(round(options.seconds * 1e6))
    trace, setup = with_flooder(normal, options.times, seed=0), preset_setup()
    ours: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    for most in (None, options.gap_tokens):
        name = "airi" if most is None else f"airi, fairness_gap_tokens {most}"
        policy = Policy(runtime={"fairness_gap_tokens": most})
        watch = LedgerWatch(AiriScheduler(trace, setup, policy), trace)
        ours.append({"question": QUESTION, "variant": name, **figures(drive(watch, trace, setup))})
        gaps.append(gap_row(name, watch, most))
    rows = ours + gaps
    if options.vllm_python:
        with VllmPeer(options.vllm_python) as peer:
            theirs = figures(peer.run(trace, setup))
        rows.append({"question": QUESTION, "variant": peer.name, **theirs})
        for row in ours:
            rows.append(
                verdict(
                    f"p99 time to first token of normal tenants, {row['variant']} against vLLM",
                    row["ttft_ms_p99"],
                    theirs["ttft_ms_p99"],
                    TARGET_RATIO,
                    unit="ms",
                    smaller_is_better=True,
                )
            )
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
