"""Starting a server under test, ours or vLLM's, and waiting until it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airi.bench.server import server_process


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and when it was started (`time.perf_counter`)."""

    port: int
    started: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def airi_command(model: Path, port: int) -> list[str]:
    """`airi serve` in this interpreter."""
    command = [sys.executable, "-m", "airi", "serve", str(model)]
    return [*command, "--port", str(port), "--served-model-name", "bench"]


def vllm_command(python: str, model: Path, port: int) -> list[str]:
    """`vllm serve` of another environment, with its defaults but for the window."""
    options = ["--dtype", "bfloat16", "--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]
    return [str(Path(python).parent / "vllm"), "serve", str(model), "--served-model-name", "bench", *options]


@contextlib.contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[Server]:
    """Runs a server while the block runs."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment.get('PATH', '')}"
    started = time.perf_counter()
    with log.open("wb") as out, server_process(command, out, environment):
        yield Server(port, started)


def first_token(server: Server, *, timeout_s: float) -> float:
    """Seconds from the start of the process to the first token of a streamed completion.

    Asks again until somebody listens and answers 200; raises TimeoutError otherwise.
    """
    body = json.dumps({"model": "bench", "prompt": [1001, 1002, 1003], "max_tokens": 2, "stream": True})
    deadline = server.started + timeout_s
    while time.perf_counter() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status == 200 and response.readline().startswith(b"data: {"):
                return time.perf_counter() - server.started
        except (ConnectionError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.02)
    raise TimeoutError(f"no token within {timeout_s} s")
