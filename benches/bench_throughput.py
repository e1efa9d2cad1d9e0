"""How many tokens per second, against vLLM and transformers, for 64 requests of 256 in / 128 out?

And for one request of 32 in / 128 out, against llama.cpp: decoding and prefilling. The model has Llama's shape at
135 M parameters in bf16 with random weights (`benches.checkpoint`). Contestants run in turn, each in a process of its
own, and the medians over the turns are compared.

What the figures do not mean: nothing about other shapes, batch sizes or machines; load time and HTTP are not in them.
"""

from __future__ import annotations

import sys
from typing import Any

from benches.checkpoint import bench_checkpoint, bench_gguf
from benches.common import bench_parser, median, print_rows, run_contestant, verdict

BATCH = ["--requests", "64", "--input-len", "256", "--output-len", "128"]
SINGLE = ["--requests", "1", "--input-len", "32", "--output-len", "128"]


def in_turn(contestants: list[tuple[str, str, list[str]]], turns: int) -> dict[str, list[dict[str, float]]]:
    """Rounds of each (script, interpreter, arguments) by script, alternating so that a noisy minute hits all."""
    rounds: dict[str, list[dict[str, float]]] = {script: [] for script, _, _ in contestants}
    for turn in range(turns):
        for script, python, arguments in contestants:
            print(f"turn {turn + 1} of {turns}: {script}", file=sys.stderr)
            rounds[script] += run_contestant(python, script, arguments)["rounds"]
    return rounds


def figures(
    name: str, rounds: dict[str, list[dict[str, float]]], keys: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row per contestant and figure."""
    return [
        {
            "question": name,
            "variant": script,
            "figure": key,
            "median": round(median(found, key), 1),
            "n": len(found),
        }
        for script, found in rounds.items()
        for key in keys
    ]


def main() -> None:
    parser = bench_parser(__doc__, "vllm", "transformers", "llama-cpp")
    parser.add_argument("--only", choices=["batch", "single"])
    options = parser.parse_args()
    folder = bench_checkpoint(options.work)
    rows: list[dict[str, Any]] = []
    if options.only != "single":
        batch = ["--model", str(folder), *BATCH]
        contestants = [("airi_offline", sys.executable, batch)]
        if options.vllm_python:
            contestants.append(("vllm_offline", options.vllm_python, batch))
        if options.transformers_python:
            contestants.append(("transformers_offline", options.transformers_python, batch))
        rounds = in_turn(contestants, options.turns)
        rows += figures("64 requests, 256 in / 128 out", rounds, ("output_tok_s",))
        if options.vllm_python:
            ours, theirs = (median(rounds[s], "output_tok_s") for s in ("airi_offline", "vllm_offline"))
            rows.append(verdict("64 requests against vLLM", ours, theirs, 1.8, unit="output tok/s"))
    if options.only != "batch":
        single = [*SINGLE, "--rounds", "5"]
        contestants = [("airi_offline", sys.executable, ["--model", str(folder), *single])]
        if options.llama_cpp_python:
            gguf = str(bench_gguf(options.work))
            contestants.append(("llama_cpp_offline", options.llama_cpp_python, ["--model", gguf, *single]))
        if options.vllm_python:
            contestants.append(("vllm_offline", options.vllm_python, ["--model", str(folder), *single]))
        rounds = in_turn(contestants, options.turns)
        rows += figures("one request, 32 in / 128 out", rounds, ("decode_tok_s", "prefill_tok_s"))
        if options.llama_cpp_python:
            for key, target in (("decode_tok_s", 1.3), ("prefill_tok_s", 1.7)):
                ours, theirs = (median(rounds[s], key) for s in ("airi_offline", "llama_cpp_offline"))
                rows.append(
                    verdict(f"one request against llama.cpp: {key}", ours, theirs, target, unit="tok/s")
                )
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
