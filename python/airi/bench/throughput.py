"""How fast does a model run in this process, without server and network?"""

from __future__ import annotations

import time
from collections.abc import Callable

from airi.bench.rows import Row, Timings, summary
from airi.bench.workload import Workload
from airi.llm import LLM
from airi.sampling_params import SamplingParams

__all__ = ["measure_throughput"]


def measure_throughput(
    llm: LLM, workload: Workload, *, on_done: Callable[[int], None] = lambda count: None
) -> Row:
    """Sends every request at once, greedy and without an early end; `on_done` hears of requests that have ended.

    A short round before it warms the caches of the machine; the prompts of that round are others.
    """
    _warm_up(llm, workload)
    jobs = workload.jobs()
    params = [SamplingParams(temperature=0.0, max_tokens=job.output_len, ignore_eos=True) for job in jobs]
    began = time.perf_counter()
    timings = [Timings(began) for _ in jobs]
    for chunk in llm.generate_stream([job.prompt for job in jobs], params):
        timings[chunk.request].arrived(time.perf_counter(), len(chunk.token_ids))
        if chunk.finish_reason is not None:
            on_done(1)
    duration = time.perf_counter() - began
    prompt_tokens = sum(len(job.prompt) for job in jobs)
    row: Row = {"bench": "throughput", "model": llm.model, "mix": workload.mix, "requests": len(jobs)}
    row |= {"input_len": workload.input_len, "output_len": workload.output_len}
    return row | summary(timings, prompt_tokens=prompt_tokens, duration=duration)


def _warm_up(llm: LLM, workload: Workload) -> None:
    short = Workload(requests=2, input_len=32, output_len=8, vocab=workload.vocab, seed=workload.seed + 1)
    params = SamplingParams(temperature=0.0, max_tokens=short.output_len, ignore_eos=True)
    llm.generate([job.prompt for job in short.jobs()], params, progress=False)
