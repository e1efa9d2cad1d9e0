"""Two models with opposite daily load on one device: how many requests meet their targets where KV memory moves
between them, against a static half for each?

AIRI's runtime both times, under virtual time, with the same requests and the same step times (an H100 and 8 B
parameters, from the simulator's presets). The load of one model follows a cosine of the day, the other's the opposite;
a day is compressed to an hour. Prompts are short and answers long, so memory is what a peak lacks.

What the numbers do not mean: both variants share the device's time alike (deficit round robin); what is compared is
memory alone. With loads that peak together nothing is gained, nor beyond what the whole device carries. A slab in use
cannot move, and requests here run for up to two minutes: with a day of ten minutes hardly anything is gained either.

    python -m benches.bench_elastic
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from airi import _core
from airi.bench.scheduler import make_buffers
from benches.common import bench_parser, print_rows, verdict
from benches.virtual_airi import AiriScheduler, Policy
from benches.virtual_time import STOP_TOKEN, Outcome, Setup, Trace, drive, make_trace
from benches.virtual_traces import preset_setup

TARGET = 1.5
TTFT_MS = 2000
ITL_MS = 60
SLAB_BLOCKS = 32
"""64 MiB of blocks of 2 MiB: 16 tokens, 32 layers, 8 heads of 128, bf16."""
SLABS = 200
"""12.5 GiB: what 80 GiB leave beside the weights of four such models, two of which are asked for nothing here."""


class TwoModels(AiriScheduler):
    """A runtime of two models; the tenant of a request says whose it is."""

    def __init__(self, trace: Trace, setup: Setup, slabs: dict[str, Any]) -> None:
        super().__init__(trace, setup, Policy())
        model = _core.ModelConfig(
            block_size=setup.block_size,
            bytes_per_block=_core.GRANULE_BYTES,
            max_model_len=setup.max_model_len,
            max_num_seqs=setup.max_num_seqs,
            max_batch_tokens=setup.max_batch_tokens,
            admission=_core.Admission.MAX_UTIL,
            **slabs,
        )
        config = _core.RuntimeConfig(
            arena_bytes=SLABS * SLAB_BLOCKS * _core.GRANULE_BYTES,
            slab_bytes=SLAB_BLOCKS * _core.GRANULE_BYTES,
            hash_key=bytes(16),
            max_queued=len(trace),
            quantum_us=1,
        )
        self._buffers = [make_buffers(setup.max_num_seqs, setup.max_batch_tokens, model) for _ in range(2)]
        self.runtime = _core.Runtime(config, [model, model], self._buffers)

    @property
    def preemptions(self) -> int:
        return sum(stats.preemptions for stats in self.runtime.stats())

    def submit(self, index: int) -> None:
        trace = self._trace
        admit = self.runtime.submit(
            request_id=index,
            model=int(trace.tenant[index]),
            tokens=trace.prompt(index),
            max_new_tokens=int(trace.max_tokens[index]),
            stop_ids=np.array([STOP_TOKEN], np.int32),
            arrival_us=int(trace.arrival_us[index]),
        )
        if admit != _core.Admit.ACCEPTED:
            raise ValueError(f"request {index} was refused: {admit.name}")


def opposite_days(peak: float, day_s: float, days: float, seed: int) -> Trace:
    """Requests of models 0 and 1, `peak` a second at the height of each one's day and a twentieth at its depth."""
    draw = np.random.default_rng(seed)
    seconds = day_s * days
    arrivals, models = [], []
    for model, phase in enumerate((0.0, np.pi)):
        at = np.sort(draw.uniform(0, seconds, draw.poisson(peak * seconds)))
        share = 0.05 + 0.95 * (1 - np.cos(2 * np.pi * at / day_s + phase)) / 2
        at = at[draw.uniform(size=len(at)) < share]
        arrivals.append(at)
        models.append(np.full(len(at), model))
    count = sum(map(len, arrivals))
    return make_trace(
        np.concatenate(arrivals) * 1e6,
        np.clip(draw.lognormal(np.log(600), 0.7, count), 16, 4000),
        np.clip(draw.lognormal(np.log(1500), 0.6, count), 16, 6000),
        tenant=np.concatenate(models),
    )


def row_of(variant: str, peak: float, outcome: Outcome) -> dict[str, Any]:
    """How the requests fared."""
    met = (outcome.ttft_us <= TTFT_MS * 1000) & (outcome.mean_gap_us() <= ITL_MS * 1000)
    return {
        "question": "two models with opposite daily load",
        "variant": variant,
        "peak_request_s": peak,
        "requests": len(met),
        "met": round(float(met.mean()), 4),
        "ttft_ms_p50": round(float(np.percentile(outcome.ttft_us, 50)) / 1000, 1),
        "ttft_ms_p95": round(float(np.percentile(outcome.ttft_us, 95)) / 1000, 1),
        "itl_ms_p50": round(float(np.median(outcome.mean_gap_us())) / 1000, 1),
        "preemptions": outcome.preemptions,
    }


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument(
        "--peak", type=float, nargs="+", default=[0.8, 0.9, 1.0, 1.2], help="requests a second"
    )
    parser.add_argument("--day", type=float, default=3600.0, help="seconds of a day")
    parser.add_argument("--days", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    setup = replace(
        preset_setup(),
        kv_blocks=SLABS * SLAB_BLOCKS,
        max_num_seqs=512,
        max_batch_tokens=2048,
        max_model_len=10240,
    )
    rows: list[dict[str, Any]] = []
    gains: list[tuple[float, float, float]] = []
    for peak in options.peak:
        trace = opposite_days(peak, options.day, options.days, options.seed)
        static = row_of(
            "static halves", peak, drive(TwoModels(trace, setup, {"num_slabs": SLABS // 2}), trace, setup)
        )
        moving = row_of(
            "elastic slabs", peak, drive(TwoModels(trace, setup, {"min_slabs": SLABS // 20}), trace, setup)
        )
        rows += [static, moving]
        gains.append((moving["met"], static["met"], peak))
    # The highest load that elastic slabs carry: below it both carry it, above it neither does.
    ours, theirs, peak = max((gain for gain in gains if gain[0] >= 0.9), key=lambda g: g[2], default=gains[0])
    name = f"requests within targets at {peak:g} a second, elastic slabs against static halves"
    rows.append(verdict(name, ours, theirs, TARGET, unit="share of requests"))
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
