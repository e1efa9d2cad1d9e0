"""AIRI's engine in this process, without gateway or transport."""

from __future__ import annotations

import time

import airi
from airi.engine import Engine, EngineOptions, ModelOptions
from airi.sampling_params import SamplingParams
from benches.contestants.workload import Timeline, Workload, parse, report


def run_round(engine: Engine, workload: Workload, round_index: int, output_len: int) -> Timeline:
    """Submits every request at once and steps until all are done."""
    params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
    prompts = workload.prompts(round_index)
    began = time.perf_counter()
    first = None
    for i, prompt in enumerate(prompts):
        engine.add_request((round_index + 1) * 100_000 + i, 0, prompt, params)
    produced = 0
    while engine.has_work():
        for output in engine.step():
            if first is None and output.tokens:
                first = time.perf_counter() - began
            produced += len(output.tokens)
    total = time.perf_counter() - began
    if produced != workload.requests * output_len or first is None:
        raise SystemExit(f"expected {workload.requests * output_len} tokens, got {produced}")
    return Timeline(first, total)


def main() -> None:
    workload = parse(__doc__ or "")
    engine = Engine(
        EngineOptions(
            models=(ModelOptions(path=workload.model, name="bench"),),
            threads=workload.threads,
            kv_memory=4 << 30,
        )
    )
    run_round(engine, workload, -1, 4)
    timelines = [run_round(engine, workload, i, workload.output_len) for i in range(workload.rounds)]
    report("airi", airi.__version__, workload, timelines)


if __name__ == "__main__":
    main()
