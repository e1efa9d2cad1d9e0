"""llama.cpp through llama-cpp-python, one request at a time: evaluate the prompt, then pick greedily."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import llama_cpp
from llama_cpp import Llama

from benches.contestants.workload import Timeline, Workload, parse, report


def run_round(llama: Llama, workload: Workload, round_index: int, output_len: int) -> Timeline:
    """One request, greedy."""
    prompt = workload.prompts(round_index)[0]
    llama.reset()
    began = time.perf_counter()
    llama.eval(prompt)
    token = llama.sample(temp=0.0, repeat_penalty=1.0)
    first = time.perf_counter() - began
    for _ in range(output_len - 1):
        llama.eval([token])
        token = llama.sample(temp=0.0, repeat_penalty=1.0)
    return Timeline(first, time.perf_counter() - began)


def main() -> None:
    workload = parse(__doc__ or "")
    if workload.requests != 1:
        raise SystemExit(f"--requests is {workload.requests}; llama.cpp is measured with 1")
    llama = Llama(
        workload.model,
        n_ctx=2048,
        n_batch=512,
        n_threads=workload.threads,
        n_threads_batch=workload.threads,
        verbose=False,
    )
    run_round(llama, workload, -1, 4)
    timelines = [run_round(llama, workload, i, workload.output_len) for i in range(workload.rounds)]
    report("llama.cpp", llama_cpp.__version__, workload, timelines)


if __name__ == "__main__":
    main()
