"""Options, requests and engine processes for tests of these."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from airi.engine.options import EngineOptions, ModelOptions
from airi.sampling_params import SamplingParams
from airi.transport import GenerateRequest
from tests.engine.engine_helpers import MIB

COMMAND = [sys.executable, "-m", "airi.engine.process"]


def options(*paths: Path, **fields: Any) -> EngineOptions:
    defaults: dict[str, Any] = {"kv_memory": 8 * MIB, "max_num_seqs": 64, "threads": 1}
    models = tuple(ModelOptions(path=str(path)) for path in paths)
    return EngineOptions(models=models, **{**defaults, **fields})


def request(
    prompt: list[int], *, model: str = "llama", timeout_us: int | None = None, **params: Any
) -> GenerateRequest:
    return GenerateRequest(
        model=model,
        tokens=GenerateRequest.pack_tokens(prompt),
        params=SamplingParams(**params),
        timeout_us=timeout_us,
    )


def start_process(given: EngineOptions, endpoint: str, *arguments: str) -> subprocess.Popen[bytes]:
    encoded = msgspec.json.encode(given).decode()
    return subprocess.Popen([*COMMAND, "--endpoint", endpoint, "--options", encoded, *arguments])
