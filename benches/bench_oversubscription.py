"""What does admission that may preempt keep of the throughput, where those who may run need twice the KV memory?

AIRI's runtime under virtual time, every request there from the start, and memory for half of what a full batch of them
comes to. NO_EVICT promises each request its memory to the end, and here knows the end: outputs are as long as allowed,
so no promise is wasted. MAX_UTIL does not use that knowledge, has to preempt and to compute again, and is judged
against it. With host memory as large as the device's, a preempted request's blocks are copied there where that is the
cheaper way back; copies run beside the steps. vLLM's Scheduler, beside them, preempts too.

What the numbers do not mean: no model runs, and where clients allow more tokens than they get, NO_EVICT falls behind.

    python -m benches.bench_oversubscription --vllm-python ENV/bin/python
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from airi._core import Admission
from benches.common import plain_parser, print_rows, verdict
from benches.virtual_airi import Policy, run_airi
from benches.virtual_peer import VllmPeer
from benches.virtual_time import Outcome, Setup, Trace, make_trace
from benches.virtual_traces import preset_setup

TARGET = 0.9
OVERSUBSCRIBED = 2
MAX_NUM_SEQS = 256


def make_requests(count: int, *, seed: int) -> Trace:
    """Prompts and outputs of about 512 tokens, spread widely, all at once."""
    draw = np.random.default_rng(seed)

    def lengths() -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.clip(draw.lognormal(np.log(400), 0.7, count), 16, 4096).astype(np.int64)

    return make_trace(np.zeros(count, np.int64), lengths(), lengths())


def tight_setup(trace: Trace) -> Setup:
    """Memory for a full batch of these requests at their full length, divided by OVERSUBSCRIBED."""
    setup = preset_setup()
    blocks = -(-(trace.prompt_len + trace.output) // setup.block_size)
    return replace(
        setup,
        max_num_seqs=MAX_NUM_SEQS,
        kv_blocks=int(MAX_NUM_SEQS * blocks.mean() / OVERSUBSCRIBED),
        max_model_len=16_384,
    )


def figures(outcome: Outcome) -> dict[str, float]:
    """Tokens generated per second, and what it took."""
    seconds = int(outcome.finish_us.max()) / 1e6
    return {
        "tok_s": round(int(outcome.trace.output.sum()) / seconds, 1),
        "preemptions": outcome.preemptions,
        "computed_per_token": round(
            int(outcome.step_tokens.sum()) / int((outcome.trace.prompt_len + outcome.trace.output).sum()), 3
        ),
        "mean_seqs": round(float(outcome.step_seqs.mean()), 1),
    }


def main() -> None:
    parser = plain_parser(__doc__, "vllm")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--host-us-per-block",
        type=float,
        default=40.0,
        help="of a copy between device and host: 2 MiB at 50 GB/s",
    )
    options = parser.parse_args()
    trace = make_requests(options.requests, seed=options.seed)
    setup = tight_setup(trace)
    question = "generated tokens with KV oversubscribed 2 x"
    policies = {
        "no_evict": Policy(model={"admission": Admission.NO_EVICT}),
        "max_util": Policy(model={"admission": Admission.MAX_UTIL}),
        "max_util + host": Policy(
            model={"admission": Admission.MAX_UTIL},
            host_blocks=setup.kv_blocks,
            host_us_per_block=options.host_us_per_block,
        ),
    }
    found = {name: figures(run_airi(trace, setup, policy)) for name, policy in policies.items()}
    rows: list[dict[str, Any]] = [
        {"question": question, "variant": f"airi {n}", **f} for n, f in found.items()
    ]
    if options.vllm_python:
        with VllmPeer(options.vllm_python) as peer:
            rows.append({"question": question, "variant": peer.name, **figures(peer.run(trace, setup))})
    rows.append(
        verdict(
            "throughput of max_util against no_evict",
            found["max_util"]["tok_s"],
            found["no_evict"]["tok_s"],
            TARGET,
            unit="tok/s",
        )
    )
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
