"""vLLM's own v1 `Scheduler` behind the loop of virtual time. Runs in vLLM's environment; no weights are loaded.

Answers jobs, one JSON object per line of stdin: {"trace": PATH, "outcome": PATH, "setup": {...}, "options": {...}};
options are further arguments of vLLM's EngineArgs. Answers one JSON object per line of stdout.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import vllm
from vllm import EngineArgs, SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from benches.contestants.vllm_scheduler import CONFIG
from benches.virtual_time import PLAIN_TOKEN, STOP_TOKEN, Ints, Setup, Trace, Work, drive, work_of


class VllmScheduler:
    """vLLM's Scheduler whose sampled tokens end each request where the trace says."""

    def __init__(self, folder: Path, trace: Trace, setup: Setup, options: dict[str, Any]) -> None:
        config = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            block_size=setup.block_size,
            max_model_len=setup.max_model_len,
            max_num_seqs=setup.max_num_seqs,
            max_num_batched_tokens=setup.max_batch_tokens,
            enable_prefix_caching=True,
            enable_chunked_prefill=True,
            async_scheduling=False,
            **options,
        ).create_engine_config()
        blocks = setup.kv_blocks + 1  # one is vLLM's null block
        config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(
            block_size=setup.block_size, num_kv_heads=3, head_size=64, dtype=torch.bfloat16
        )
        groups = [KVCacheGroupSpec(["layer"], spec)]
        hash_fn = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_fn)
        self._hasher = get_request_block_hasher(setup.block_size, hash_fn)
        self._scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups),
            structured_output_manager=StructuredOutputManager(config),
            block_size=setup.block_size,
        )
        self._trace = trace
        self._emitted = np.zeros(len(trace), np.int64)
        self._plan: Any = None
        self.cached = np.zeros(len(trace), np.int64)
        self.preemptions = 0

    def submit(self, index: int) -> None:
        trace = self._trace
        params = SamplingParams(
            max_tokens=int(trace.max_tokens[index]), stop_token_ids=[STOP_TOKEN], ignore_eos=True
        )
        self._scheduler.add_request(
            Request(
                request_id=str(index),
                prompt_token_ids=trace.prompt(index).tolist(),
                sampling_params=params,
                pooling_params=None,
                arrival_time=float(trace.arrival_us[index]) / 1e6,
                block_hasher=self._hasher,
            )
        )

    def plan(self, now_us: int) -> Work | None:
        plan = self._scheduler.schedule()
        if not plan.total_num_scheduled_tokens:
            return None
        self._plan = plan
        self.preemptions += len(plan.preempted_req_ids or ())
        for new in plan.scheduled_new_reqs:
            self.cached[int(new.req_id)] = new.num_computed_tokens
        requests = self._scheduler.requests
        queries = np.fromiter(plan.num_scheduled_tokens.values(), np.int64)
        # schedule() has counted the tokens of this step as computed already.
        lengths = [requests[name].num_computed_tokens for name in plan.num_scheduled_tokens]
        return work_of(queries, np.asarray(lengths, np.int64))

    def commit(self, device_us: int) -> Ints:
        plan = self._plan
        requests = self._scheduler.requests
        names = list(plan.num_scheduled_tokens)
        tokens: list[list[int]] = []
        emitted: list[int] = []
        for name in names:
            request = requests[name]
            if request.num_computed_tokens < request.num_tokens:
                tokens.append([])
                continue
            index = int(name)
            self._emitted[index] += 1
            ends = self._emitted[index] == self._trace.output[index]
            tokens.append([STOP_TOKEN if ends else PLAIN_TOKEN])
            emitted.append(index)
        output = ModelRunnerOutput(
            req_ids=names, req_id_to_index={n: i for i, n in enumerate(names)}, sampled_token_ids=tokens
        )
        self._scheduler.update_from_output(plan, output)
        return np.asarray(emitted, np.int64)


def run(job: dict[str, Any]) -> None:
    trace = Trace.load(Path(job["trace"]))
    setup = Setup.from_json(job["setup"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = CONFIG | {"max_position_embeddings": setup.max_model_len}
        (folder / "config.json").write_text(json.dumps(config))
        scheduler = VllmScheduler(folder, trace, setup, job["options"])
    drive(scheduler, trace, setup).save(Path(job["outcome"]))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints is no answer
    for line in sys.stdin:
        run(json.loads(line))
        print(json.dumps({"peer": f"vLLM {vllm.__version__} Scheduler"}), file=answers, flush=True)


if __name__ == "__main__":
    main()
