"""Engines on tiny checkpoints for the engine's tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from airi.engine import Engine, EngineOptions, ModelOptions
from airi.engine.step_log import MAGIC
from airi.outputs import Output
from airi.sampling_params import SamplingParams
from tests.engine.tiny_models import Reference

MIB = 2**20
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
PLATFORM: dict[str, Any] = {}
"""Where engines run unless told otherwise; replaced by tests of another platform."""


class Exact(list[float]):
    """Numbers that must be the same to the last bit, or on a platform that promises less, as `tolerance` says."""

    tolerance = 0.0

    def __eq__(self, other: object) -> bool:
        close = {"rel_tol": 0.0, "abs_tol": self.tolerance}
        return (
            isinstance(other, list)
            and len(self) == len(other)
            and all(math.isclose(a, b, **close) for a, b in zip(self, other, strict=True))
        )


_OWN = ("tenant", "priority", "deadline_us", "cache_salt", "metered", "forbidden", "shown_tokens")
"""Fields of `add_request` itself."""


def make_engine(*paths: Path, **options: Any) -> Engine:
    """An engine serving these checkpoints under their folders' names, in 8 MiB unless told otherwise."""
    models = options.pop("models", tuple(ModelOptions(path=str(path)) for path in paths))
    defaults: dict[str, Any] = {
        "models": models,
        "kv_memory": 8 * MIB * len(models),
        "max_num_seqs": 8,
        "max_batch_tokens": 256,
        "threads": 1,
        **PLATFORM,
    }
    return Engine(EngineOptions(**{**defaults, **options}))


def add(
    engine: Engine, request_id: int, prompt: Sequence[int], *, model: str | int = 0, **fields: Any
) -> None:
    """Adds a request; fields that `add_request` knows go there, all others into SamplingParams."""
    own = {name: fields.pop(name) for name in _OWN if name in fields}
    engine.add_request(request_id, model, prompt, SamplingParams(**fields), **own)


def run(engine: Engine, *, limit: int = 10_000) -> dict[int, Output]:
    """Steps until nothing is left; returns each request's outputs as one."""
    whole: dict[int, Output] = {}
    for _ in range(limit):
        if not engine.has_work():
            return whole
        gather(whole, engine.step())
    raise RuntimeError(f"the engine still has work after {limit} steps")


def gather(whole: dict[int, Output], outputs: Sequence[Output]) -> None:
    """Merges a step's outputs into those so far; a request that had ended must not get more."""
    for output in outputs:
        if output.request_id in whole:
            if whole[output.request_id].finish_reason is not None:
                raise RuntimeError(f"request {output.request_id} got an output after its end")
            whole[output.request_id].merge(output)
        else:
            whole[output.request_id] = output


def generate(engine: Engine, prompt: Sequence[int], **fields: Any) -> Output:
    """One request, run to its end."""
    add(engine, 1, prompt, **fields)
    return run(engine)[1]


def beside_a_sound_one(engine: Engine, sound: Reference, prompt: Sequence[int], **fields: Any) -> Output:
    """What ends a request with these fields, of which nothing may reach a sound one that runs with it."""
    add(engine, 1, sound.prompt, max_tokens=64, **GREEDY)
    add(engine, 2, prompt, max_tokens=64, **fields, **GREEDY)
    outputs = run(engine)
    assert outputs[1].tokens == sound.tokens
    assert (outputs[2].finish_reason, outputs[2].tokens) == ("error", [])
    assert engine.stats()[0].active_blocks == 0
    return outputs[2]


def records(path: Path) -> list[list[Any]]:
    """What a step log holds."""
    data = path.read_bytes()
    found, at = [], len(MAGIC)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(msgspec.msgpack.decode(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return found
