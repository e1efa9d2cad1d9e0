"""Small traces in the formats that are read, and simulations of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airi.simulate import Batch, Report, SimulationOptions, StepTime, simulate
from airi.simulate.step_time import Piece

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,55
"""
MOONCAKE = [
    {"timestamp": 0, "input_length": 1100, "output_length": 6, "hash_ids": [0, 1, 2]},
    {"timestamp": 40, "input_length": 1024, "output_length": 4, "hash_ids": [0, 1]},
    {"timestamp": 3000, "input_length": 700, "output_length": 3, "hash_ids": [0, 7]},
]
SERVEGEN = """\
arrival_s,client,input_tokens,output_tokens
0.0009,14,23,2
0.0103,6,636,228
0.5,14,9,5
"""
VTC = """\
arrival_s,client,prompt_len,output_len
0.5,0,256,256
1.0,1,256,256
"""

FAST = StepTime(memory=Piece(step_us=100.0), arithmetic=Piece(step_us=100.0, token_us=1.0), source="test")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def batch(
    arrival_us: Sequence[int],
    input_tokens: Sequence[int],
    output_tokens: Sequence[int],
    *,
    tenant: Sequence[int] | None = None,
    parts: Sequence[Sequence[int]] | None = None,
) -> Batch:
    rows = len(arrival_us)
    ids = parts or [()] * rows
    return Batch(
        arrival_us=np.array(arrival_us, np.int64),
        tenant=np.array(tenant or [0] * rows, np.int64),
        band=np.full(rows, 8, np.int32),
        input_tokens=np.array(input_tokens, np.int32),
        output_tokens=np.array(output_tokens, np.int32),
        part_start=np.cumsum([0, *map(len, ids)]).astype(np.int64),
        parts=np.array([i for row in ids for i in row], np.int64),
    )


def random_batch(seed: int, requests: int, *, gap_us: int = 20_000, tenants: int = 3) -> Batch:
    """Prompts that share prefixes of up to four parts of 32 tokens, and some that share nothing."""
    draw = np.random.default_rng(seed)
    arrival = np.cumsum(draw.integers(0, 2 * gap_us, requests))
    parts = [tuple(draw.integers(0, 3, draw.integers(0, 5)).tolist()) for _ in range(requests)]
    lengths = [32 * len(ids) + int(draw.integers(1, 40)) for ids in parts]
    return batch(
        arrival.tolist(),
        lengths,
        draw.integers(1, 40, requests).tolist(),
        tenant=draw.integers(0, tenants, requests).tolist(),
        parts=parts,
    )


def run(batches: Batch | list[Batch], **options: Any) -> Report:
    settings: dict[str, Any] = {"step_time": FAST, "block_size": 16, "kv_blocks": 64, "part_tokens": 32}
    given = [batches] if isinstance(batches, Batch) else batches
    return simulate(given, SimulationOptions(**(settings | options)))
