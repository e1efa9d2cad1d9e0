"""How long do running requests wait for their next token while prompts of 32k tokens arrive?

AIRI's runtime with a target for the time between tokens against vLLM's Scheduler with its default budget, under virtual
time with the same step-time model, which AIRI has to learn first. The figure is the p99 of the time between tokens of
short requests that decode; what both have done must be the same, and the time they took for it.

What the numbers do not mean: no model runs, and the time that a scheduler takes itself is not in them.

    python -m benches.bench_long_prompts --vllm-python ENV/bin/python
"""

from __future__ import annotations

from typing import Any

import numpy as np

from airi.bench.rows import percentile
from benches.common import print_rows, verdict
from benches.virtual_airi import Policy, run_airi
from benches.virtual_peer import VllmPeer, peer_parser, tuned_setups
from benches.virtual_time import Outcome, Trace, make_trace
from benches.virtual_traces import preset_setup

LONG_PROMPT = 32_768
TARGET_RATIO = 0.5
TARGET_THROUGHPUT = 0.99


def make_requests(seconds: float, *, seed: int) -> Trace:
    """Short requests eight times a second and long prompts every third second, Poisson both."""
    draw = np.random.default_rng(seed)
    arrivals, prompts, outputs = [], [], []
    for rate, prompt, output in ((8.0, 512, 256), (1 / 3, LONG_PROMPT, 64)):
        times = np.cumsum(draw.exponential(1e6 / rate, int(rate * seconds)))
        arrivals.append(times.astype(np.int64))
        prompts.append(np.full(len(times), prompt))
        outputs.append(np.full(len(times), output))
    return make_trace(np.concatenate(arrivals), np.concatenate(prompts), np.concatenate(outputs))


def figures(outcome: Outcome) -> dict[str, float]:
    """Waiting of the short requests, of the first tokens of the long ones, and throughput, in ms and tokens/s."""
    trace = outcome.trace
    is_long = trace.prompt_len == LONG_PROMPT
    gaps = (outcome.gaps_us(~is_long) / 1000).tolist()
    tokens = int((trace.prompt_len + trace.output).sum())
    return {
        "itl_ms_p50": percentile(gaps, 50),
        "itl_ms_p99": percentile(gaps, 99),
        "itl_ms_max": max(gaps),
        "ttft_ms_p99": percentile((outcome.ttft_us[~is_long] / 1000).tolist(), 99),
        "long_ttft_ms_p50": percentile((outcome.ttft_us[is_long] / 1000).tolist(), 50),
        "long_ttft_ms_p99": percentile((outcome.ttft_us[is_long] / 1000).tolist(), 99),
        "tok_s": tokens / (int(outcome.finish_us.max()) / 1e6),
        "busy": float((outcome.step_end_us - outcome.step_start_us).sum() / outcome.finish_us.max()),
    }


def main() -> None:
    parser = peer_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="of arrivals")
    parser.add_argument("--itl-ms", type=int, default=50, help="the target")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trace, setup = make_requests(options.seconds, seed=options.seed), preset_setup()
    question = "decoding while 32k prompts arrive"
    plain = figures(run_airi(trace, setup))
    policy = Policy.with_targets(ttft_us=None, itl_us=options.itl_ms * 1000)
    ours = figures(run_airi(trace, setup, policy))
    rows: list[dict[str, Any]] = [
        {"question": question, "variant": "airi without targets", **rounded(plain)},
        {"question": question, "variant": f"airi, itl {options.itl_ms} ms", **rounded(ours)},
    ]
    if options.vllm_python:
        with VllmPeer(options.vllm_python) as peer:
            theirs = figures(peer.run(trace, setup))
            rows.append({"question": question, "variant": peer.name, **rounded(theirs)})
            for name, tuned in tuned_setups(peer, setup, options.peer_batch_tokens):
                found = rounded(figures(peer.run(trace, tuned)))
                rows.append({"question": question, "variant": name, **found})
        rows.append(
            verdict(
                "p99 between tokens against vLLM",
                ours["itl_ms_p99"],
                theirs["itl_ms_p99"],
                TARGET_RATIO,
                unit="ms",
                smaller_is_better=True,
            )
        )
        rows.append(
            verdict(
                "throughput against vLLM", ours["tok_s"], theirs["tok_s"], TARGET_THROUGHPUT, unit="tok/s"
            )
        )
    print_rows(rows, as_json=options.json)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    main()
