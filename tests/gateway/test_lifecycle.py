"""How a server that started its own engine ends: stopped while loading, hurried, or left without an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from airi.errors import EngineDeadError
from airi.gateway.access import Access
from airi.gateway.app import create_app
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.lifecycle import Listening, Stop, bind
from airi.gateway.metrics import Metrics
from airi.gateway.models import ModelRegistry, serve_models
from airi.gateway.options import AppOptions, ServerOptions
from airi.gateway.server import serve
from airi.transport import EngineClient, EngineSupervisor
from airi.transport.stub import StubOptions

from .conftest import children, events, serve_process, stub_engine, wait_until

SERVE = ("--threads", "1", "--kv-memory", "64MiB", "--max-num-seqs", "1", "--log-level", "info")
# Minutes of work for the built-in model, one row at a time; its window is 1,024 tokens.
ENDLESS = {
    "model": "airi-demo",
    "prompt": "Hi",
    "max_tokens": 1000,
    "ignore_eos": True,
    "n": 128,
    "stream": True,
}


def test_a_drain_that_runs_out_of_time_stops_the_engines_work_too() -> None:
    with serve_process(*SERVE, "--drain-timeout", "0.2") as (process, url, said):
        with httpx.stream("POST", f"{url}/v1/completions", json=ENDLESS, timeout=60) as response:
            pieces = response.iter_text()
            text = next(pieces)
            (engine,) = children(process.pid)
            process.terminate()
            text += "".join(pieces)
        assert "running requests had 0.2 s to finish" in events(text)[-1]["error"]["message"]
        # An engine that drained on its own would take 30 s and be killed.
        assert process.wait(25) == 0
        assert not Path(f"/proc/{engine}").exists()
    assert not any("Traceback" in line for line in said), "".join(said)


def test_a_second_signal_ends_the_engine_without_waiting() -> None:
    with serve_process(*SERVE) as (process, url, said):
        with httpx.stream("POST", f"{url}/v1/completions", json=ENDLESS, timeout=60) as response:
            pieces = response.iter_text()  # kept: the end of the iterator would close the stream
            next(pieces)
            (engine,) = children(process.pid)
            process.terminate()
            wait_until(lambda: not _accepts(url), "the server does not drain")
            process.terminate()
            assert process.wait(25) == 0
        assert not Path(f"/proc/{engine}").exists()
    assert not any("Traceback" in line for line in said), "".join(said)


def _accepts(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return False
    return True


@contextmanager
def _silent_hub() -> Iterator[socket.socket]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        yield silent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_a_model_downloads_does_not_wait_for_the_hub(number: int, tmp_path: Path) -> None:
    with _silent_hub() as silent:
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_ETAG_TIMEOUT": "600",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-m", "airi", "serve", "hf://acme/tiny", "--port", "0"]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | environment, start_new_session=True
        )
        assert process.stderr is not None
        try:
            connection, _ = silent.accept()
            (engine,) = children(process.pid)
            for _ in range(2):  # people press Ctrl-C more than once
                process.send_signal(number)
            assert process.wait(25) == 0
            assert "Traceback" not in process.stderr.read()
            assert not Path(f"/proc/{engine}").exists()
            connection.close()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


async def test_a_second_signal_does_not_interrupt_the_end_of_a_start_up() -> None:
    ended = False

    async def start_up(stops: asyncio.Future[Stop]) -> None:
        nonlocal ended
        stops.set_result(Stop())
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # ending the engine takes a while
            ended = True

    stops: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
    starting = asyncio.create_task(start_up(stops))
    stop = await stops
    await asyncio.sleep(0)
    stop()
    await asyncio.sleep(0)
    stop()
    await asyncio.wait((starting,))
    assert starting.cancelled()
    assert ended


async def test_a_server_whose_engine_keeps_dying_ends_with_an_error(
    model_folder: Path, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    stub = ("-m", "airi.transport.stub", "--name", "tiny", "--model-path", str(model_folder))

    def works_once(endpoint: str) -> Sequence[str]:
        if started.exists():
            return (sys.executable, "-c", "raise SystemExit(3)")
        started.touch()
        return (sys.executable, *stub, "--endpoint", endpoint)

    supervisor = EngineSupervisor(command=works_once, max_failures=1, first_delay_s=0.01)

    def kill(_: Listening) -> None:
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)

    async with supervisor as client:
        sock = bind("127.0.0.1", 0)
        with pytest.raises(EngineDeadError, match="died 2 times in a row and was given up"):
            await serve(
                client,
                ServerOptions(port=0),
                sock,
                stop=Stop(),
                access=Access(),
                government=Government(decider_of(None, ())),
                on_listening=kill,
            )


async def test_a_server_whose_engine_was_given_up_is_not_healthy(model_folder: Path, tmp_path: Path) -> None:
    stub = StubOptions(endpoint=f"ipc://{tmp_path}/e", model_path=str(model_folder), name="tiny")
    with stub_engine(stub):
        async with await EngineClient.connect(stub.endpoint, timeout_s=10) as client:
            metrics = Metrics("1")
            app = create_app(
                ModelRegistry(serve_models(client, metrics)),
                metrics,
                AppOptions(),
                access=Access(),
                government=Government(decider_of(None, ())),
            )
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
                assert (await http.get("/health")).status_code == 200
                client.give_up(EngineDeadError("it died too often"))
                response = await http.get("/health")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "it died too often"
