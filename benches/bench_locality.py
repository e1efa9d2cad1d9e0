"""How much of pure longest-prefix-match's hit rate is left where tenants keep their bound?

One trace of prompts that share prefixes, through AIRI's runtime under virtual time: with the plain ledger of tenants,
with deficits of a quantum (locality under a bound), and with a quantum without end, which is pure longest prefix match.
Beside the hit rates: how far the counters of tenants that waited came apart, against what may be: the most that one
dispatch can grant, and the quantum.

What the numbers do not mean: no model runs, and the time that the scheduler takes itself is not in them. Hit rates
depend on the memory there is and on how deep the queue is, which is what --speed is for.

    python -m benches.bench_locality --trace mooncake_synthetic_trace.jsonl.gz
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from airi.bench.rows import percentile
from benches.common import plain_parser, print_rows, verdict
from benches.virtual_airi import AiriScheduler, Policy
from benches.virtual_ledger import LedgerWatch
from benches.virtual_time import Setup, Trace, drive
from benches.virtual_traces import preset_setup, read_trace

TARGET_RATIO = 0.95
TENANTS = 16
ENDLESS = 1 << 40
"""A quantum that no tenant ever uses up."""


def by_root(trace: Trace) -> Trace:
    """The trace with tenants by the first part of the prompt: its hash id modulo 16."""
    roots = trace.segment_key[trace.segment_start[:-1]] - 1
    return replace(trace, tenant=roots % TENANTS)


def measure(trace: Trace, setup: Setup, quantum: int | None) -> dict[str, Any]:
    """One run: hit rate, times to the first token, and the gap of tenants' service against its bound."""
    policy = Policy(runtime={"locality_quantum_tokens": quantum})
    watch = LedgerWatch(AiriScheduler(trace, setup, policy), trace)
    outcome = drive(watch, trace, setup)
    ttft_ms = (outcome.ttft_us / 1000).tolist()
    bound = watch.bound + (quantum or 0)
    return {
        "hit_rate": round(int(outcome.cached.sum()) / int(trace.prompt_len.sum()), 4),
        "ttft_ms_p50": round(percentile(ttft_ms, 50), 1),
        "ttft_ms_p99": round(percentile(ttft_ms, 99), 1),
        "makespan_s": round(int(outcome.finish_us.max()) / 1e6, 1),
        "gap": round(watch.gap),
        "bound": round(bound),
        "held": watch.gap <= bound,
    }


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="Mooncake, JSON lines")
    parser.add_argument("--quantum", type=int, nargs="+", default=[4096], help="tokens; several are compared")
    parser.add_argument("--speed", type=float, default=1.0, help="of arrivals, over the trace's")
    parser.add_argument("--kv-blocks", type=int, default=preset_setup().kv_blocks, help="of 16 tokens")
    parser.add_argument("--seconds", type=float, help="of the trace, from its start; left out: all of it")
    options = parser.parse_args()
    trace = by_root(read_trace(options.trace))
    if options.seconds is not None:
        trace = trace.until(round(options.seconds * 1e6))
    trace = trace.at_speed(options.speed)
    longest = int((trace.prompt_len + trace.max_tokens).max())
    setup = replace(preset_setup(), kv_blocks=options.kv_blocks, max_model_len=longest)
    question = "prefix hits under the tenants' bound"
    plain, endless = measure(trace, setup, None), measure(trace, setup, ENDLESS)
    rows: list[dict[str, Any]] = [{"question": question, "variant": "ledger", **plain}]
    for quantum in options.quantum:
        found = measure(trace, setup, quantum)
        rows.append({"question": question, "variant": f"quantum of {quantum}", **found})
        name = f"hit rate with a quantum of {quantum} against pure longest prefix match"
        ratio = verdict(name, found["hit_rate"], endless["hit_rate"], TARGET_RATIO, unit="of prompt tokens")
        rows.append({**ratio, "reached": ratio["reached"] and found["held"]})
    rows.append({"question": question, "variant": "longest prefix match", **endless})
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
