"""vLLM's engine in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), stepped by hand to see the first token."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import vllm
from vllm import EngineArgs, LLMEngine, SamplingParams

from benches.contestants.workload import Timeline, Workload, parse, report


def run_round(engine: LLMEngine, workload: Workload, round_index: int, output_len: int) -> Timeline:
    """Adds every request at once and steps until all are done."""
    params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True, detokenize=False)
    prompts = workload.prompts(round_index)
    began = time.perf_counter()
    first = None
    for i, prompt in enumerate(prompts):
        engine.add_request(f"{round_index}-{i}", {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        if first is None and any(o.outputs[0].token_ids for o in outputs):
            first = time.perf_counter() - began
    total = time.perf_counter() - began
    if first is None:
        raise SystemExit("no token came")
    return Timeline(first, total)


def main() -> None:
    workload = parse(__doc__ or "")
    engine = LLMEngine.from_engine_args(
        EngineArgs(model=workload.model, dtype="bfloat16", max_model_len=2048, skip_tokenizer_init=False)
    )
    run_round(engine, workload, -1, 4)
    timelines = [run_round(engine, workload, i, workload.output_len) for i in range(workload.rounds)]
    report("vllm", vllm.__version__, workload, timelines)


if __name__ == "__main__":
    main()
