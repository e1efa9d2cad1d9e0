"""Public traces as requests under virtual time. Files may be gzipped."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from benches.virtual_time import Trace, make_trace

MOONCAKE_BLOCK = 512
"""Tokens that one hash id of a Mooncake trace stands for."""


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8")
    return path.open(encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with _open(path) as file:
        yield from csv.DictReader(file)


def read_azure(path: Path) -> Trace:
    """Azure LLM inference 2023: TIMESTAMP, ContextTokens, GeneratedTokens."""
    rows = list(_rows(path))
    stamps = [datetime.datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    first = min(stamps)
    arrivals = [(stamp - first) // datetime.timedelta(microseconds=1) for stamp in stamps]
    prompts = [int(row["ContextTokens"]) for row in rows]
    return make_trace(arrivals, prompts, [int(row["GeneratedTokens"]) for row in rows])


def read_servegen(path: Path) -> Trace:
    """ServeGen: arrival_s, client, input_tokens, output_tokens; clients are tenants."""
    rows = list(_rows(path))
    return make_trace(
        [round(float(row["arrival_s"]) * 1e6) for row in rows],
        [int(row["input_tokens"]) for row in rows],
        [int(row["output_tokens"]) for row in rows],
        tenant=[int(row["client"]) for row in rows],
    )


def read_mooncake(path: Path) -> Trace:
    """Mooncake: timestamp in ms, input_length, output_length, hash_ids; the tenant is the first id modulo 16."""
    with _open(path) as file:
        rows = sorted((json.loads(line) for line in file), key=lambda row: row["timestamp"])
    outputs = np.array([row["output_length"] for row in rows], np.int64)
    keys = np.concatenate([row["hash_ids"] for row in rows]).astype(np.int64)
    counts = [len(row["hash_ids"]) for row in rows]
    lengths = np.full(len(keys), MOONCAKE_BLOCK, np.int64)
    ends = np.cumsum(counts)
    lengths[ends - 1] = [
        r["input_length"] - (n - 1) * MOONCAKE_BLOCK for r, n in zip(rows, counts, strict=True)
    ]
    return Trace(
        arrival_us=np.array([row["timestamp"] * 1000 for row in rows], np.int64),
        tenant=np.array([row["hash_ids"][0] % 16 for row in rows], np.int64),
        output=outputs,
        max_tokens=outputs,
        segment_start=np.concatenate([[0], ends]),
        segment_key=keys + 1,
        segment_len=lengths,
    )
