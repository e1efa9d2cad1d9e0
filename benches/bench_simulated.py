"""How close does the simulator come to the engine on this CPU?

One half of a trace is served by the engine on the clock, after a few bursts to warm up. How long its steps took is
fitted to its recording, as `airi simulate --replay FILE --fit-step-time` does. The other half is served too, and
simulated with that. The figure is how far p50 and p95 of the time to the first token and between tokens are apart: the
median over turns, each with a fresh engine.
Requests are shortened and slowed down to what a small model on a CPU can serve; which model it is makes no difference
to the question.

What the numbers do not mean: nothing about GPUs. On a machine that others use, steps take what those leave: the
simulator spreads its steps as those of the first half were, and others may do something else in the second.
`--real-time` keeps programs of the same machine off the cores, as far as the system allows; other machines on the same
processor stay.

    python -m benches.bench_simulated --real-time --trace azure_llm_2023_conv.csv.gz
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from airi.bench.rows import percentile
from airi.bench.shapes import SHAPES, cached_checkpoint
from airi.engine import Engine, EngineOptions, ModelOptions
from airi.sampling_params import SamplingParams
from airi.simulate import Batch, SimulationOptions, StepTime, Trace, simulate
from airi.simulate.replay import replay
from benches.common import plain_parser, print_rows

TARGET = 0.1
QUANTILES = (50, 95)
WINDOW = 2048
KV_BYTES = 1 << 30
BURSTS = ((1, 16), (1, 64), (1, 400), (2, 32), (2, 200), (4, 16), (4, 300), (8, 64), (16, 16), (32, 16))
"""Requests at once, and tokens of each prompt: steps of all sizes, whatever the trace brings later."""
BURST_OUTPUT = 6


@dataclass(slots=True)
class Served:
    """When requests came, and each of their tokens: seconds since the start of the batch, by request id."""

    arrivals: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, list[float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Milliseconds, by name of the quantile."""
        firsts = [times[0] - self.arrivals[request] for request, times in self.tokens.items()]
        gaps = [after - before for times in self.tokens.values() for before, after in pairwise(times)]
        return {
            f"{name}_ms_p{q}": percentile(values, q) * 1000
            for name, values in (("ttft", firsts), ("itl", gaps))
            for q in QUANTILES
        }


class Replay:
    """An engine that serves batches of requests as they arrive on the clock."""

    def __init__(self, model: Path, threads: int | None, recording: Path) -> None:
        self._recording = recording
        options = EngineOptions(
            models=(ModelOptions(path=str(model), name="bench"),),
            threads=threads,
            kv_memory=KV_BYTES,
            max_model_len=WINDOW,
            record_steps=str(recording),
        )
        self.engine = Engine(options)
        self._draw = np.random.default_rng(0)
        self._next_id = 0

    def learnt(self) -> StepTime:
        """How long steps took, as the recording has it. The engine must have nothing to do."""
        self.engine.step()  # writes what is not written yet
        [(model, steps)] = replay(self._recording).step_times.values()
        return StepTime.fit(model, steps, source="fitted to the engine's recording")

    def serve(self, batch: Batch) -> Served:
        """Runs the batch to its end. Prompts are drawn anew: they share nothing."""
        served = Served()
        due = (batch.arrival_us / 1e6).tolist()
        sent = 0
        began = time.perf_counter()
        while sent < len(batch) or self.engine.has_work():
            while sent < len(batch) and due[sent] <= time.perf_counter() - began:
                served.arrivals[self._send(batch, sent)] = due[sent]
                sent += 1
            if not self.engine.has_work():
                time.sleep(max(due[sent] - (time.perf_counter() - began), 0.0))
                continue
            outputs = self.engine.step()
            now = time.perf_counter() - began
            for output in outputs:
                served.tokens.setdefault(output.request_id, []).extend([now] * len(output.tokens))
        return served

    def _send(self, batch: Batch, index: int) -> int:
        vocab = self.engine.find_model(0).vocab_size
        prompt = self._draw.integers(100, vocab, batch.input_tokens[index], dtype=np.int32)
        params = SamplingParams(max_tokens=int(batch.output_tokens[index]), temperature=0.0, ignore_eos=True)
        request = self._next_id
        self._next_id += 1
        self.engine.add_request(request, 0, prompt, params)
        return request


def burst(count: int, prompt: int) -> Batch:
    """Requests that arrive at once."""
    return Batch(
        arrival_us=np.zeros(count, np.int64),
        tenant=np.zeros(count, np.int64),
        band=np.zeros(count, np.int32),
        input_tokens=np.full(count, prompt, np.int32),
        output_tokens=np.full(count, BURST_OUTPUT, np.int32),
        part_start=np.zeros(count + 1, np.int64),
        parts=np.zeros(0, np.int64),
    )


def scaled(batch: Batch, *, divisor: int, speed: float) -> Batch:
    """From its first arrival on, `speed` times as fast, with `divisor` times shorter requests."""
    return replace(
        batch,
        arrival_us=np.rint((batch.arrival_us - batch.arrival_us[0]) / speed).astype(np.int64),
        input_tokens=np.maximum(batch.input_tokens // divisor, 1),
        output_tokens=np.maximum(batch.output_tokens // divisor, 1),
    )


def simulated(batch: Batch, step_time: StepTime, replay: Replay) -> dict[str, float]:
    """The same figures from the simulator, which is set up as the engine is."""
    options = replay.engine.options
    report = simulate(
        [batch],
        SimulationOptions(
            block_size=options.block_size,
            kv_blocks=replay.engine.models[0].num_kv_blocks,
            step_time=step_time,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=options.max_batch_tokens,
            max_model_len=WINDOW,
            steps_ahead=int(options.async_scheduling),
        ),
    )
    return {
        f"{name}_ms_p{q}": report.figures[f"{name}_ms"][f"p{q}"]
        for name in ("ttft", "itl")
        for q in QUANTILES
    }


def one_turn(replay: Replay, first: Batch, second: Batch) -> tuple[dict[str, float], dict[str, float]]:
    """What was measured on the second half, and what the simulator says of it."""
    for count, prompt in BURSTS:
        replay.serve(burst(count, prompt))
    replay.serve(first)
    learnt = replay.learnt()
    return replay.serve(second).figures(), simulated(second, learnt, replay)


def judge(turns: list[tuple[dict[str, float], dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each figure: medians, and the median of how far the two are apart."""
    rows = []
    for name in turns[0][0]:
        apart = median(abs(simulated[name] / real[name] - 1) for real, simulated in turns)
        rows.append(
            {
                "question": f"simulated against real, {name}",
                "real": round(median(real[name] for real, _ in turns), 2),
                "simulated": round(median(simulated[name] for _, simulated in turns), 2),
                "apart": round(apart, 4),
                "apart_each": [round(simulated[name] / real[name] - 1, 4) for real, simulated in turns],
                "target": f"<= {TARGET:g}",
                "reached": apart <= TARGET,
            }
        )
    return rows


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="a file that airi simulate reads")
    parser.add_argument("--requests", type=int, default=200, help="of the trace, half of them to learn from")
    parser.add_argument("--divisor", type=int, default=4, help="how many times shorter requests are made")
    parser.add_argument("--speed", type=float, default=0.25, help="how many times as fast they come")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--real-time", action="store_true", help="schedule its threads before all others (needs the right to)"
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-135m")
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where the random checkpoint is kept"
    )
    options = parser.parse_args()
    rows = next(iter(Trace(options.trace).batches())).take(np.arange(options.requests))
    half = options.requests // 2
    first, second = (
        scaled(rows.take(np.arange(start, start + half)), divisor=options.divisor, speed=options.speed)
        for start in (0, half)
    )
    if options.real_time:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    model = cached_checkpoint(options.shape, options.work).resolve()
    turns = []
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            turns.append(one_turn(Replay(model, options.threads, Path(folder) / "steps"), first, second))
    print_rows(judge(turns), as_json=options.json)


if __name__ == "__main__":
    main()
