"""The workload that every contestant runs: random token prompts of one length, greedy, a fixed number of tokens out."""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """`requests` prompts of `input_len` tokens, each answered with exactly `output_len` tokens."""

    model: str
    requests: int
    input_len: int
    output_len: int
    threads: int
    seed: int
    rounds: int

    def prompts(self, round_index: int) -> list[list[int]]:
        """Token ids [requests][input_len]; other ones each round, so that no prefix cache helps."""
        draw = random.Random(
            f"{self.seed}/{round_index}"
        )  # a number would lose its sign: the warm-up is round -1
        return [[draw.randrange(1000, 40000) for _ in range(self.input_len)] for _ in range(self.requests)]


def parse(description: str) -> Workload:
    """The workload that the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="checkpoint folder (a GGUF file for llama.cpp)")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="measured rounds after one short warm-up")
    return Workload(**vars(parser.parse_args()))


@dataclass
class Timeline:
    """When the first and the last token of one round came, in seconds since the round began."""

    first_token: float
    total: float


def report(engine: str, version: str, workload: Workload, timelines: list[Timeline]) -> None:
    """One JSON line with a record per round. Decode speed counts the tokens after the first."""
    rounds = [
        {
            "total_s": t.total,
            "output_tok_s": workload.requests * workload.output_len / t.total,
            "prefill_tok_s": workload.requests * workload.input_len / t.first_token,
            "decode_tok_s": workload.requests
            * (workload.output_len - 1)
            / max(t.total - t.first_token, 1e-9),
        }
        for t in timelines
    ]
    json.dump({"engine": engine, "version": version, "rounds": rounds}, sys.stdout)
    sys.stdout.write("\n")
