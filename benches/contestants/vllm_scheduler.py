"""vLLM's own v1 `Scheduler` with a stub executor: what schedule() and update_from_output() cost when every request
decodes, and what it costs to admit a request of 512 tokens. Runs in vLLM's environment; no weights are loaded."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")

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

BLOCK = 16
PROMPT = 128
ADMITTED_PROMPT = 512
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}


class Stub:
    """A scheduler whose steps are answered at once with token 7 for every request that samples."""

    def __init__(self, folder: Path, *, running: int, max_model_len: int) -> None:
        config = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            block_size=BLOCK,
            max_model_len=max_model_len,
            max_num_seqs=running,
            max_num_batched_tokens=running + 8192,
            enable_prefix_caching=True,
            async_scheduling=False,
        ).create_engine_config()
        blocks = (running + 1) * -(-max_model_len // BLOCK) + 64
        config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=3, head_size=64, dtype=torch.bfloat16)
        groups = [KVCacheGroupSpec(["layer"], spec)]
        hash_fn = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_fn)
        self.hasher = get_request_block_hasher(BLOCK, hash_fn)
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
        )
        self.draw = np.random.default_rng(0)

    def request(self, name: str, prompt: int, max_tokens: int) -> Request:
        return Request(
            request_id=name,
            prompt_token_ids=self.draw.integers(1, 30000, prompt).tolist(),
            sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            pooling_params=None,
            block_hasher=self.hasher,
        )

    def answer(self, plan: Any) -> ModelRunnerOutput:
        """What a runner would hand back; built outside of the measured time."""
        names = list(plan.num_scheduled_tokens)
        requests = self.scheduler.requests
        tokens = [[7] if requests[n].num_computed_tokens >= requests[n].num_tokens else [] for n in names]
        return ModelRunnerOutput(
            req_ids=names, req_id_to_index={n: i for i, n in enumerate(names)}, sampled_token_ids=tokens
        )

    def step(self) -> tuple[int, int]:
        """One step: nanoseconds in the scheduler, and how many requests it planned."""
        began = time.perf_counter_ns()
        plan = self.scheduler.schedule()
        planned = time.perf_counter_ns()
        output = self.answer(plan)
        answered = time.perf_counter_ns()
        self.scheduler.update_from_output(plan, output)
        return planned - began + time.perf_counter_ns() - answered, len(plan.num_scheduled_tokens)


def decoding(folder: Path, running: int, steps: int) -> list[float]:
    """Nanoseconds per request of each step in which every request decodes."""
    warm = 2 * (running * PROMPT // 8192) + 24
    stub = Stub(folder, running=running, max_model_len=PROMPT + warm + steps + 8)
    for i in range(running):
        stub.scheduler.add_request(stub.request(str(i), PROMPT, warm + steps + 4))
    for _ in range(warm):
        stub.step()
    times = [stub.step() for _ in range(steps)]
    if any(count != running for _, count in times):
        raise SystemExit(f"a step left a running request out: {running} should run")
    return [spent / running for spent, _ in times]


def admitting(folder: Path, count: int) -> list[float]:
    """Microseconds from a list of 512 tokens to a planned first chunk, one request at a time."""
    stub = Stub(folder, running=count + 1, max_model_len=ADMITTED_PROMPT + 8)
    times = []
    for i in range(count):
        prompt = stub.draw.integers(1, 30000, ADMITTED_PROMPT).tolist()
        params = SamplingParams(max_tokens=1, ignore_eos=True)
        began = time.perf_counter_ns()
        stub.scheduler.add_request(
            Request(
                request_id=str(i),
                prompt_token_ids=prompt,
                sampling_params=params,
                pooling_params=None,
                block_hasher=stub.hasher,
            )
        )
        plan = stub.scheduler.schedule()
        times.append((time.perf_counter_ns() - began) / 1000)
        stub.scheduler.update_from_output(plan, stub.answer(plan))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--admit", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        result = {
            "peer": f"vLLM {vllm.__version__} Scheduler",
            "decode_ns": {n: float(np.median(decoding(folder, n, options.steps))) for n in options.running},
            "admit_us": float(np.median(admitting(folder, options.admit))),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
