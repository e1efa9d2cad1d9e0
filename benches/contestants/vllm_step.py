"""vLLM's own v1 `Scheduler` with a stub executor, slots full and requests coming and going: how long a whole step is,
and what it takes to make and queue a request of 512 tokens. Runs in vLLM's environment; no weights are loaded."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import vllm
from vllm import SamplingParams
from vllm.v1.request import Request

from benches.contestants.churn import OUTPUT, PROMPT, RUNNING, SHARED, WARM_STEPS
from benches.contestants.vllm_scheduler import CONFIG, Stub

TENANTS = 16
WAITING = 1024


class Churn:
    """A scheduler whose slots are always full, with `WAITING` requests behind them."""

    def __init__(self, folder: Path) -> None:
        self._stub = Stub(folder, running=RUNNING, max_model_len=PROMPT + OUTPUT[1])
        self._draw = np.random.default_rng(0)
        self._heads = self._draw.integers(1, 30000, (TENANTS, SHARED))
        self._sent = 0
        self.submit: list[float] = []
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.rows: list[int] = []
        for _ in range(WAITING + RUNNING):
            self.send()

    def forget(self) -> None:
        """Drops what has been measured."""
        for figures in (self.submit, self.cpu, self.wall, self.rows):
            figures.clear()

    def send(self) -> None:
        tail = self._draw.integers(1, 30000, PROMPT - SHARED)
        prompt = np.concatenate([self._heads[self._sent % TENANTS], tail]).tolist()
        output = int(self._draw.integers(OUTPUT[0], OUTPUT[1], endpoint=True))
        params = SamplingParams(max_tokens=output, ignore_eos=True)
        began = time.thread_time_ns()
        self._stub.scheduler.add_request(
            Request(
                request_id=str(self._sent),
                prompt_token_ids=prompt,
                sampling_params=params,
                pooling_params=None,
                block_hasher=self._stub.hasher,
            )
        )
        self.submit.append((time.thread_time_ns() - began) / 1000)
        self._sent += 1

    def step(self) -> None:
        scheduler = self._stub.scheduler
        before = len(scheduler.requests)
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        plan = scheduler.schedule()
        planned_cpu, planned_wall = time.thread_time_ns(), time.perf_counter_ns()
        self.rows.append(len(plan.num_scheduled_tokens))
        output = self._stub.answer(plan)
        again_cpu, again_wall = time.thread_time_ns(), time.perf_counter_ns()
        scheduler.update_from_output(plan, output)
        self.cpu.append((planned_cpu - cpu + time.thread_time_ns() - again_cpu) / 1000)
        self.wall.append((planned_wall - wall + time.perf_counter_ns() - again_wall) / 1000)
        for _ in range(before - len(scheduler.requests)):
            self.send()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        churn = Churn(folder)
        for _ in range(WARM_STEPS):
            churn.step()
        churn.forget()
        for _ in range(options.steps):
            churn.step()
    if min(churn.rows) < RUNNING * 3 // 4:
        raise SystemExit(f"a step had {min(churn.rows)} rows; this would measure something else")
    times = {"cpu": churn.cpu, "wall": churn.wall}
    result = {f"{name}_us_p{q}": float(np.percentile(times[name], q)) for name in times for q in (50, 99)}
    result["submit_us_p50"] = float(np.median(churn.submit))
    print(json.dumps({**result, "peer": f"vLLM {vllm.__version__} Scheduler"}))


if __name__ == "__main__":
    main()
