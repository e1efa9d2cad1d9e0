"""What can be imported without what."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys

class Absent:
    names = {names!r}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import airi

options = {{"dtype": "float32", "max_model_len": 64, "max_num_seqs": 2, "max_batch_tokens": 64}}
options |= {{"device": "cpu", "backend": {backend!r}}}
with airi.LLM("airi-demo", **options) as llm:
    params = airi.SamplingParams(max_tokens=2, temperature=0, logprobs=1)
    assert len(llm.generate(["Hello"], params)[0].outputs[0].token_ids) == 2
"""
GATEWAY = (
    "msgspec",
    "zmq",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "prometheus_client",
    "typer",
    "rich",
    "pydantic",
    "yaml",
    "cedarpy",
    "asyncpg",
    "jwt",
    "cryptography",
    "redis",
    "aiohttp",
    "cel",
    "jsonschema_rs",
    "markdown_it",
    "pypdf",
)


def run_without(names: tuple[str, ...], backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(names=names, backend=backend)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_models_run_in_scripts_without_torch_and_what_the_gateway_needs() -> None:
    run_without((*GATEWAY, "torch", "triton"), "cpu")


def test_a_devices_engine_runs_without_what_the_gateway_needs() -> None:
    run_without(GATEWAY, "cuda")
