"""What a signal does to a server in front of an engine that goes on: drain, and end with exit status 0."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from airi.transport.stub import StubOptions

from .conftest import events, serve_process, stub_engine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 3}


@pytest.fixture
def slow_engine(model_folder: Path, tmp_path: Path) -> Iterator[str]:
    """The endpoint of an engine that takes half a second for 50 tokens and two for the longest answer."""
    folder = str(model_folder)
    endpoint = f"ipc://{tmp_path}/engine"
    stub = StubOptions(endpoint=endpoint, model_path=folder, name="tiny", step_us=10_000, max_model_len=256)
    with stub_engine(stub):
        yield stub.endpoint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_drains_the_streams_and_exits_with_0(slow_engine: str, number: int) -> None:
    with serve_process("--engine", slow_engine) as (process, url, said):
        texts: list[str] = []
        begun = threading.Barrier(11)

        def stream() -> None:
            body = {**CHAT, "max_tokens": 50, "stream": True}
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
                pieces = response.iter_text()
                text = next(pieces)
                begun.wait(30)
                texts.append(text + "".join(pieces))

        clients = [threading.Thread(target=stream) for _ in range(10)]
        for client in clients:
            client.start()
        begun.wait(30)
        os.kill(process.pid, number)
        for client in clients:
            client.join(30)
        assert len(texts) == 10
        for text in texts:
            assert events(text)[-1]["choices"][0]["finish_reason"] == "length"
        assert process.wait(30) == 0
    assert not any("Traceback" in line for line in said), "".join(said)


def test_a_draining_server_takes_no_new_connections(slow_engine: str) -> None:
    with serve_process("--engine", slow_engine) as (process, url, _):
        body = {**CHAT, "max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
            pieces = response.iter_text()
            next(pieces)
            process.send_signal(signal.SIGTERM)
            _until_refused(url)
            assert "[DONE]" in "".join(pieces)
        assert process.wait(30) == 0


def test_what_a_drain_does_not_finish_in_time_ends_with_an_error(slow_engine: str) -> None:
    with serve_process("--engine", slow_engine, "--drain-timeout", "0.2") as (process, url, _):
        body = {**CHAT, "max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
            pieces = response.iter_text()
            text = next(pieces)
            process.send_signal(signal.SIGTERM)
            text += "".join(pieces)
        assert "running requests had 0.2 s to finish" in events(text)[-1]["error"]["message"]
        assert process.wait(30) == 0


def _until_refused(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return
        time.sleep(0.02)
    pytest.fail("a draining server still accepts connections")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl (Debian package curl)")
def test_it_says_where_it_listens_and_a_line_that_works(slow_engine: str) -> None:
    with serve_process("--engine", slow_engine, "--log-level", "warning") as (process, _, said):
        deadline = time.monotonic() + 20
        while not any(line.startswith("Try: ") for line in said):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        line = next(line for line in said if line.startswith("Try: ")).removeprefix("Try: ")
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert '"chat.completion"' in done.stdout, done.stderr
        process.terminate()
        assert process.wait(30) == 0


def test_a_stop_while_nothing_serves_yet_ends_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airi", "serve", "--engine", f"ipc://{tmp_path}/nobody", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        _wait_for_handler(process.pid, signal.SIGTERM)
        process.terminate()
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _wait_for_handler(pid: int, number: signal.Signals) -> None:
    """Until the process catches the signal (Linux tells)."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        if caught & (1 << (number - 1)):
            return
        time.sleep(0.01)
    pytest.fail("the signal is never handled")
