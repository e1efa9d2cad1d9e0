"""EngineSupervisor with stub engines in real processes: death, restart, giving up, stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from airi.errors import EngineDeadError, EngineStartError
from airi.transport import EngineSupervisor
from tests.transport.test_client import collect, request


def stub_command(*arguments: str) -> Callable[[str], Sequence[str]]:
    """The command line of a stub engine."""
    return lambda endpoint: (sys.executable, "-m", "airi.transport.stub", "--endpoint", endpoint, *arguments)


def failing_command(endpoint: str) -> Sequence[str]:
    """A process that ends at once."""
    return (sys.executable, "-c", "raise SystemExit(3)")


def is_running(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_killed_engine_is_started_again_and_fifty_streams_end() -> None:
    supervisor = EngineSupervisor(command=stub_command("--step-us", "2000"))
    async with supervisor as client:
        streams = [client.open(request(4000)) for _ in range(50)]
        for stream in streams:
            await anext(stream)
        first_pid = supervisor.pid
        assert first_pid is not None
        os.kill(first_pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineDeadError):
                async for _ in stream:
                    pass
        assert len((await collect(client, request(5))).tokens) == 5
        assert supervisor.num_restarts == 1
        assert supervisor.pid != first_pid


async def test_an_engine_that_cannot_start_is_an_error_at_once() -> None:
    supervisor = EngineSupervisor(command=failing_command)
    with pytest.raises(EngineStartError, match="status 3"):
        await supervisor.start()


def absent_command(endpoint: str) -> Sequence[str]:
    """A process that cannot be started."""
    return ("/nowhere/engine", endpoint)


@pytest.mark.parametrize("later", [failing_command, absent_command])
async def test_an_engine_that_keeps_dying_is_given_up(
    tmp_path: Path, later: Callable[[str], Sequence[str]]
) -> None:
    marker = tmp_path / "started"
    stub = stub_command()

    def works_once(endpoint: str) -> Sequence[str]:
        if marker.exists():
            return later(endpoint)
        marker.touch()
        return stub(endpoint)

    supervisor = EngineSupervisor(command=works_once, max_failures=2, first_delay_s=0.01)
    async with supervisor as client:
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        while client.alive:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineDeadError, match="given up"):
            await collect(client, request(5))
        with pytest.raises(EngineDeadError, match="given up"):
            await collect(client, request(5))
        assert supervisor.num_restarts == 2


async def test_stopping_leaves_no_process_and_no_directory() -> None:
    supervisor = EngineSupervisor(command=stub_command())
    await supervisor.start()
    pid = supervisor.pid
    directory = Path(supervisor.endpoint.removeprefix("ipc://")).parent
    assert pid is not None
    assert directory.stat().st_mode & 0o077 == 0
    await supervisor.stop()
    assert not is_running(pid)
    assert not directory.exists()


async def test_an_engine_that_ignores_the_signal_is_killed() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "from airi.transport.stub import StubEngine, StubOptions;"
        "StubEngine(StubOptions(endpoint=sys.argv[1])).run()"
    )

    def command(endpoint: str) -> Sequence[str]:
        return (sys.executable, "-c", code, endpoint)

    supervisor = EngineSupervisor(command=command, drain_s=0.1, kill_after_s=0.1)
    await supervisor.start()
    pid = supervisor.pid
    assert pid is not None
    await supervisor.stop()
    assert not is_running(pid)
