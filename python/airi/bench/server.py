"""`airi serve` in a process of its own, for as long as a bench lasts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from airi.errors import AiriError

__all__ = ["free_port", "running_server", "server_process", "wait_until_ready"]

_START_S = 600.0
_STOP_S = 30.0
_POLL_S = 0.05


@contextmanager
def running_server(model: str | Path | None) -> Iterator[str]:
    """The base URL of a server on a free loopback port, ready for requests; it is stopped at the end.

    Raises AiriError with the server's last words where it does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "airi", "serve", *([str(model)] if model is not None else [])]
    with (
        tempfile.TemporaryFile() as log,
        server_process([*command, "--port", str(port)], log) as process,
    ):
        wait_until_ready(process, f"http://127.0.0.1:{port}/ready", log)
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server_process(
    command: Sequence[str], log: IO[bytes], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server whose words go to `log`. Ends it with SIGTERM, then all it has started with SIGKILL."""
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    """Returns once `url` answers 200; raises AiriError with the last line of `log` where that cannot be."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise AiriError(f"the server ended with exit code {process.returncode}: {lines[-1]}")
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(_POLL_S)
    raise AiriError(f"the server was not ready after {_START_S:.0f} s")
