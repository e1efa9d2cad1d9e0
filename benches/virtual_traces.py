"""Public traces and presets of the simulator as what the loop of virtual time takes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from airi.simulate import PRESETS
from airi.simulate import Trace as TraceFile
from airi.simulate.batches import Batch, joined
from benches.virtual_time import Piece, Setup, StepTime, Trace

PRESET = "h100-8b-bf16"
PART_TOKENS = 512
BLOCK = 16


def read_trace(path: Path) -> Trace:
    """A file that `airi simulate` reads. Raises airi.errors.ConfigError for any other."""
    return as_trace(TraceFile(path, part_tokens=PART_TOKENS).batches())


def as_trace(batches: Iterable[Batch]) -> Trace:
    """Batches as one trace: a segment for each part of a prompt, and one for what no part covers."""
    rows = joined(list(batches))
    prompts = rows.input_tokens.astype(np.int64)
    parts = np.diff(rows.part_start)
    own = np.maximum(prompts - parts * PART_TOKENS, 0)
    start = np.concatenate([[0], np.cumsum(parts + (own > 0))])
    keys = np.zeros(start[-1], np.int64)
    lengths = np.full(start[-1], PART_TOKENS, np.int64)
    of_part = np.arange(len(rows.parts)) + np.repeat(start[:-1] - rows.part_start[:-1], parts)
    keys[of_part] = rows.parts + 1
    has_parts = parts > 0
    last = start[:-1] + parts - 1
    lengths[last[has_parts]] = np.minimum(prompts - (parts - 1) * PART_TOKENS, PART_TOKENS)[has_parts]
    tails = start[1:][own > 0] - 1
    keys[tails] = -1 - np.flatnonzero(own > 0)
    lengths[tails] = own[own > 0]
    outputs = np.maximum(rows.output_tokens, 1).astype(np.int64)
    return Trace(
        arrival_us=rows.arrival_us,
        tenant=rows.tenant,
        output=outputs,
        max_tokens=outputs,
        segment_start=start,
        segment_key=keys,
        segment_len=lengths,
    )


def preset_setup(name: str = PRESET) -> Setup:
    """A device and a model of the simulator, with the limits that `vllm serve` sets itself there.

    8,192 tokens and 1,024 sequences are what vLLM 0.32 chooses on an H100 or H200 (`EngineArgs.get_batch_defaults`).
    """
    preset = PRESETS[name]
    pieces = {
        kind: Piece(*piece.as_tuple())
        for kind, piece in (("memory", preset.step_time.memory), ("arithmetic", preset.step_time.arithmetic))
    }
    return Setup(
        step_time=StepTime(**pieces),
        kv_blocks=preset.kv_tokens // BLOCK,
        block_size=BLOCK,
        max_num_seqs=1024,
        max_batch_tokens=8192,
        max_model_len=131_072,
    )
