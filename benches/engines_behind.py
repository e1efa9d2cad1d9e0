"""A gateway in a process of its own before engines without a model, and streamed requests to it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from airi import builtin
from airi.bench.server import free_port, server_process, wait_until_ready

__all__ = ["MODEL", "Behind", "Ended", "engine_process", "engines_behind", "stream"]

MODEL = "bench"


@dataclass(frozen=True)
class Behind:
    """What runs."""

    url: str
    gateway: subprocess.Popen[bytes]
    engines: Sequence[subprocess.Popen[str]]
    endpoints: Sequence[str]


@dataclass(frozen=True)
class Ended:
    """One request, as its client saw it."""

    how: str
    """`answered`; `error`: the server said what went wrong; `refused`: nobody took the connection; `cut`: neither."""
    sent_at: float
    first_at: float | None
    """When its first token came; monotonic seconds, as `sent_at`."""


@contextmanager
def engine_process(endpoint: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """An engine without a model, until the block ends."""
    command = [sys.executable, "-m", "airi.transport.stub", "--endpoint", endpoint, "--name", MODEL]
    command += ["--model-path", str(builtin.path()), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline().startswith("ready"):
                raise RuntimeError("an engine did not start")
            yield process
        finally:
            process.kill()


@contextmanager
def engines_behind(
    count: int, *options: str, config: str | None = None, sockets: Path | None = None
) -> Iterator[Behind]:
    """A gateway before `count` engines with these options; `config` is its YAML, which says PORT and FOLDER."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if sockets is None else sockets
        endpoints = [f"ipc://{folder}/engine{i}" for i in range(count)]
        engines = [stack.enter_context(engine_process(endpoint, *options)) for endpoint in endpoints]
        port = free_port()
        serve = [sys.executable, "-m", "airi", "serve", "--log-level", "error"]
        if config is None:
            serve += ["--port", str(port)]
        else:
            file = folder / "airi.yaml"
            file.write_text(config.replace("PORT", str(port)).replace("FOLDER", str(folder)))
            serve += [str(file)]
        serve += [flag for endpoint in endpoints for flag in ("--engine", endpoint)]
        log = stack.enter_context(tempfile.TemporaryFile())
        gateway = stack.enter_context(server_process(serve, log))
        wait_until_ready(gateway, f"http://127.0.0.1:{port}/ready", log)
        yield Behind(f"http://127.0.0.1:{port}", gateway, engines, endpoints)


async def stream(url: str, prompt: Sequence[int], tokens: int) -> Ended:
    """One streamed completion of so many tokens, on a connection of its own."""
    parts = urlsplit(url)
    body = json.dumps(
        {"model": MODEL, "prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True, "stream": True}
    )
    head = f"POST /v1/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    sent_at = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
    except OSError:
        return Ended("refused", sent_at, None)
    first_at = None
    text = b""
    try:
        writer.write(f"{head}content-type: application/json\r\n\r\n{body}".encode())
        while True:
            line = await reader.readline()
            if first_at is None and line.startswith(b"data: "):
                first_at = time.monotonic()
            text = text[-4096:] + line
            if not line:
                break
    except OSError:
        pass
    finally:
        writer.close()
    return Ended(_how(text), sent_at, first_at)


def _how(text: bytes) -> str:
    """What the end of an answer says."""
    if b'"error":' in text:
        return "error"
    whole = b'"finish_reason":"length"' in text and b"data: [DONE]" in text
    return "answered" if whole else "cut"
