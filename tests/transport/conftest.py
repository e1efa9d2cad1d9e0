"""Stub engines for the transport's tests: in a thread, or in a process that can be killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airi.transport.stub import StubEngine, StubOptions

StartStub = Callable[..., subprocess.Popen[str]]


@contextmanager
def running_stub(options: StubOptions) -> Iterator[StubEngine]:
    """A stub engine serving from a thread of this process."""
    engine = StubEngine(options)
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        yield engine
    finally:
        engine.stop()
        thread.join()


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    """An ipc endpoint of this test's own."""
    return f"ipc://{tmp_path}/engine"


@pytest.fixture
def start_stub(endpoint: str) -> Iterator[StartStub]:
    """Starts stub engines in processes of their own; returns once they serve; ends them afterwards."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "airi.transport.stub", "--endpoint", endpoint, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
