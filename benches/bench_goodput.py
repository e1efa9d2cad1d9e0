"""At how many times its speed can a trace be served so that 90 % of requests meet both targets?

AIRI's runtime, which is told the targets, against vLLM's Scheduler as it is by default, under virtual time with the
same step-time model, which AIRI has to learn first. A request meets its targets if its first token comes within
--ttft-ms and 99 % of its gaps between tokens are within --itl-ms. A second figure takes the mean gap instead, which
hides stalls: there the two cannot differ much, because what ends it is how much the device can compute.

What the numbers do not mean: no model runs, and the time that a scheduler takes itself is not in them. The factor is
found to 5 %.

    python -m benches.bench_goodput --trace azure_llm_2023_conv.csv.gz --vllm-python ENV/bin/python
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airi.bench.rows import percentile
from benches.common import print_rows, verdict
from benches.virtual_airi import Policy, run_airi
from benches.virtual_peer import VllmPeer, peer_parser, tuned_setups
from benches.virtual_time import Outcome, Setup, Trace
from benches.virtual_traces import preset_setup, read_trace

SHARE = 0.9
TARGET_RATIO = 1.3
SLOWEST, GRID = 0.5, 1.05
STEPS = 64
"""Factors that are tried: SLOWEST * GRID ** k for k < STEPS, up to 10.8."""

Meets = Callable[[Outcome], npt.NDArray[np.bool_]]
Question = tuple[str, Meets, float | None]
"""What is asked, by which requests meet it, and the ratio to vLLM to reach."""


def by_gaps(ttft_us: int, itl_us: int) -> Meets:
    return lambda outcome: (outcome.ttft_us <= ttft_us) & (outcome.gap_quantile_us(0.99) <= itl_us)


def by_mean(ttft_us: int, itl_us: int) -> Meets:
    return lambda outcome: (outcome.ttft_us <= ttft_us) & (outcome.mean_gap_us() <= itl_us)


class Ladder:
    """Runs of one scheduler at the factors of the grid, each at most once."""

    def __init__(self, name: str, run: Callable[[Trace], Outcome], trace: Trace) -> None:
        self._name, self._run, self._trace = name, run, trace
        self._known: dict[int, Outcome] = {}

    def outcome(self, step: int) -> Outcome:
        if step not in self._known:
            print(f"{self._name} at {factor(step):.2f} x", file=sys.stderr)
            self._known[step] = self._run(self._trace.at_speed(factor(step)))
        return self._known[step]

    def highest(self, meets: Meets) -> int | None:
        """The last step of the ladder on which SHARE of the requests meet their targets; by bisection."""
        low, high = -1, STEPS
        while high - low > 1:
            middle = (low + high) // 2
            if meets(self.outcome(middle)).mean() >= SHARE:
                low = middle
            else:
                high = middle
        return low if low >= 0 else None


def factor(step: int) -> float:
    return SLOWEST * GRID**step


def row_of(question: str, ladder: Ladder, name: str, meets: Meets) -> dict[str, Any]:
    """The highest factor, and how the requests fared there."""
    step = ladder.highest(meets)
    if step is None:
        return {"question": question, "variant": name, "factor": 0.0}
    outcome = ladder.outcome(step)
    seconds = (outcome.trace.arrival_us[-1] - outcome.trace.arrival_us[0]) / 1e6
    return {
        "question": question,
        "variant": name,
        "factor": round(factor(step), 3),
        "met": round(float(meets(outcome).mean()), 4),
        "request_s": round(len(outcome.trace) / seconds, 2),
        "ttft_ms_p90": round(percentile((outcome.ttft_us / 1000).tolist(), 90), 1),
        "itl_ms_p50": round(percentile((outcome.gaps_us() / 1000).tolist(), 50), 2),
        "itl_ms_p99": round(percentile((outcome.gaps_us() / 1000).tolist(), 99), 2),
        "preemptions": outcome.preemptions,
    }


def tuned_rows(
    name: str, peer: VllmPeer, trace: Trace, setup: Setup, questions: list[Question]
) -> list[dict[str, Any]]:
    """vLLM with another budget than its default: what someone who knows the trace and the targets might set."""
    ladder = Ladder(name, lambda faster: peer.run(faster, setup), trace)
    return [row_of(question, ladder, name, meets) for question, meets, _ in questions]


def main() -> None:
    parser = peer_parser(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="Azure LLM inference 2023, CSV")
    parser.add_argument("--seconds", type=float, default=600, help="of the trace, from its start")
    parser.add_argument("--ttft-ms", type=int, default=1000)
    parser.add_argument("--itl-ms", type=int, default=50)
    options = parser.parse_args()
    trace, setup = read_trace(options.trace).until(round(options.seconds * 1e6)), preset_setup()
    targets = (options.ttft_ms * 1000, options.itl_ms * 1000)
    stated = f"ttft <= {options.ttft_ms} ms, itl <= {options.itl_ms} ms"
    questions: list[Question] = [
        (f"highest load, {stated} for 99 % of gaps", by_gaps(*targets), TARGET_RATIO),
        (f"highest load, {stated} for the mean gap", by_mean(*targets), None),
    ]
    policy = Policy.with_targets(ttft_us=targets[0], itl_us=targets[1])
    ours = Ladder("airi", lambda faster: run_airi(faster, setup, policy), trace)
    rows: list[dict[str, Any]] = [row_of(name, ours, "airi", meets) for name, meets, _ in questions]
    if options.vllm_python:
        with VllmPeer(options.vllm_python) as peer:
            theirs = Ladder("vllm", lambda faster: peer.run(faster, setup), trace)
            for i, (name, meets, target) in enumerate(questions):
                row = row_of(name, theirs, "vLLM", meets) | {"variant": peer.name}
                rows.append(row)
                compared = verdict(
                    f"{name}, against vLLM", rows[i]["factor"], row["factor"], target or 1.0, unit="x"
                )
                rows.append(compared)
            for name, tuned in tuned_setups(peer, setup, options.peer_batch_tokens):
                rows += tuned_rows(name, peer, trace, tuned, questions)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
