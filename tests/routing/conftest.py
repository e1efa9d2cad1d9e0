"""Sets of stub engines: in threads, whose counts can be read, or in processes that can be killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from airi.routing import ReplicaSet
from airi.routing.starting import reached
from airi.transport import GenerateRequest
from airi.transport.stub import StubEngine, StubOptions
from tests.logs import logging_as_before
from tests.transport.calls import request
from tests.transport.conftest import running_stub

StartStub = Callable[..., subprocess.Popen[str]]
RunStubs = Callable[..., list[StubEngine]]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    with logging_as_before():
        yield


@asynccontextmanager
async def replica_set(endpoints: Sequence[str], retry_window_s: float = 120.0) -> AsyncIterator[ReplicaSet]:
    """The set of what runs at these endpoints."""
    async with reached(endpoints, retry_window_s=retry_window_s) as reaching:
        yield await reaching


def prompt_of(first: int, length: int = 64, max_tokens: int = 4) -> GenerateRequest:
    """A prompt that shares no block with those of other first tokens."""
    message = request(max_tokens)
    message.tokens = GenerateRequest.pack_tokens([first] * length)
    return message


@pytest.fixture
def endpoints(tmp_path: Path) -> list[str]:
    """Of three engines."""
    return [f"ipc://{tmp_path}/engine{i}" for i in range(3)]


@pytest.fixture
def start_stub() -> Iterator[StartStub]:
    """Starts stub engines in processes of their own; returns once they serve; ends them afterwards."""
    processes: list[subprocess.Popen[str]] = []

    def start(endpoint: str, *arguments: str) -> subprocess.Popen[str]:
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


@pytest.fixture
def run_stubs(endpoints: list[str]) -> Iterator[RunStubs]:
    """Runs a stub engine at each endpoint, in threads of this process."""
    with ExitStack() as stack:

        def run(**options: object) -> list[StubEngine]:
            made = [StubOptions(endpoint=endpoint, **options) for endpoint in endpoints]  # type: ignore[arg-type]
            return [stack.enter_context(running_stub(each)) for each in made]

        yield run
