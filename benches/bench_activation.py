"""How long does a sleeping model of 135 M parameters take to come back, against copying its weights?

    python -m benches.bench_activation [--json]

`airi.LLM` with `sleepable`: `wake_up` returns when requests may run. The copy is NumPy's, of as many bytes, in the same
turn, into pages that were given back to the system as those of a sleeping model are; `to_mapped` compares with a copy
into pages that are there already. `first_token` is from the call of `wake_up` to the first token, beside that of the
same prompt when awake. Checked, too: the model says the same after it has slept. Does not mean: devices, where the
copy crosses a bus.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from airi import LLM, SamplingParams
from airi.engine.arena import allocate_arena, release_pages
from airi.engine.checkpoint import Checkpoint
from benches.checkpoint import bench_checkpoint
from benches.common import bench_parser, print_rows

TARGET = 1.5
PROMPT = list(range(1000, 1032))


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(llm: LLM, weights_bytes: int, turns: int) -> dict[str, Any]:
    """Medians over turns, each of everything once."""
    source = np.random.default_rng(0).integers(0, 256, weights_bytes, np.uint8)
    target = allocate_arena(weights_bytes)
    first = SamplingParams(max_tokens=1, temperature=0)
    found: dict[str, list[float]] = {}

    def answer() -> list[int]:
        [done] = llm.generate([PROMPT], SamplingParams(max_tokens=8, temperature=0))
        return list(done.outputs[0].token_ids)

    said = answer()

    def note(what: str, work: Callable[[], object]) -> None:
        found.setdefault(what, []).append(seconds(work))

    for turn in range(turns + 1):
        note("awake_s", lambda: llm.generate([PROMPT], first))
        note("sleep_s", llm.sleep)
        release_pages(target)
        note("copy_s", lambda: np.copyto(target, source))
        note("mapped_s", lambda: np.copyto(target, source))
        note("wake_s", llm.wake_up)
        note("answer_s", lambda: llm.generate([PROMPT], first))
        if turn == 0:
            found.clear()  # the first one touches memory that later ones find
    if answer() != said:
        raise SystemExit("the model says something else after it has slept")
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    options = bench_parser(__doc__).parse_args()
    path = bench_checkpoint(options.work)
    size = Checkpoint(path).nbytes
    with LLM(str(path), sleepable=True, kv_memory=256 << 20) as llm:
        at = measure(llm, size, options.turns)
    ratio = at["wake_s"] / at["copy_s"]
    row = {
        "question": "activation of a sleeping model",
        "weights_mib": round(size / 2**20, 1),
        "wake_ms": round(at["wake_s"] * 1e3, 1),
        "copy_ms": round(at["copy_s"] * 1e3, 1),
        "ratio": round(ratio, 2),
        "to_mapped": round(at["wake_s"] / at["mapped_s"], 2),
        "first_token_ms": round((at["wake_s"] + at["answer_s"]) * 1e3, 1),
        "first_token_awake_ms": round(at["awake_s"] * 1e3, 1),
        "sleep_ms": round(at["sleep_s"] * 1e3, 1),
        "target": f"<= {TARGET} x the copy",
        "reached": ratio <= TARGET,
        "n": options.turns,
    }
    print_rows([row], as_json=options.json)


if __name__ == "__main__":
    main()
