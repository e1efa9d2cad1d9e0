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
from tests.transport.calls import collect, request


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


# A request with a prompt of 13 tokens kills it.
_FRAGILE = """
import os, sys
from airi.transport.stub import StubEngine, StubOptions

class Fragile(StubEngine):
    def _add(self, request):
        if request.num_tokens == 13:
            os._exit(1)
        super()._add(request)

Fragile(StubOptions(endpoint=sys.argv[1])).run()
"""


async def test_a_request_that_kills_two_engines_is_not_sent_to_a_third() -> None:
    def command(endpoint: str) -> Sequence[str]:
        return (sys.executable, "-c", _FRAGILE, endpoint)

    async with (supervisor := EngineSupervisor(command=command, first_delay_s=0.01)) as client:
        with pytest.raises(EngineDeadError, match="died 2 times before this request began"):
            await collect(client, request(5, prompt=13))
        assert len((await collect(client, request(5))).tokens) == 5
        assert supervisor.num_restarts == 2


async def test_the_counters_of_a_dead_engine_are_not_shown() -> None:
    async with (supervisor := EngineSupervisor(command=stub_command())) as client:
        while client.stats is None:
            await asyncio.sleep(0.01)
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        while client.alive:
            await asyncio.sleep(0.01)
        assert client.stats is None


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


async def test_stopping_does_not_wait_for_what_still_runs(tmp_path: Path) -> None:
    status = tmp_path / "status"
    code = (
        "import sys; from airi.transport.stub import main; from pathlib import Path;"
        "Path(sys.argv[1]).write_text(str(main(sys.argv[2:])))"
    )
    arguments = ("--step-us", "5000", "--max-model-len", "1000000")  # an hour of steps

    def command(endpoint: str) -> Sequence[str]:
        return (sys.executable, "-c", code, str(status), "--endpoint", endpoint, *arguments)

    supervisor = EngineSupervisor(command=command, kill_after_s=60)
    client = await supervisor.start()
    stream = client.open(request(900_000))
    await anext(stream)
    await supervisor.stop()
    assert status.read_text() == "0", "the engine was killed instead of told that nothing is wanted"
    with pytest.raises(EngineDeadError, match="stopped"):
        async for _ in stream:
            pass


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
