"""transformers' `generate` on one padded-free batch (all prompts have one length)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from transformers import AutoModelForCausalLM

from benches.contestants.workload import Timeline, Workload, parse, report


def run_round(
    model: transformers.PreTrainedModel, workload: Workload, round_index: int, output_len: int
) -> Timeline:
    """The first token alone, then the whole answer: `generate` does not tell when the first one came."""
    ids = torch.tensor(workload.prompts(round_index))
    mask = torch.ones_like(ids)
    began = time.perf_counter()
    model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
    first = time.perf_counter() - began
    began = time.perf_counter()
    model.generate(
        ids, attention_mask=mask, max_new_tokens=output_len, min_new_tokens=output_len, do_sample=False
    )
    return Timeline(first, time.perf_counter() - began)


def main() -> None:
    workload = parse(__doc__ or "")
    torch.set_num_threads(workload.threads)
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.bfloat16).eval()
    model.generation_config.pad_token_id = 0
    run_round(model, workload, -1, 4)
    timelines = [run_round(model, workload, i, workload.output_len) for i in range(workload.rounds)]
    report("transformers", transformers.__version__, workload, timelines)


if __name__ == "__main__":
    main()
