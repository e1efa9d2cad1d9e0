"""What keeps an engine process from starting, told in a line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from airi.errors import CheckpointError, ConfigError
from airi.transport import EngineSupervisor

from .process_helpers import COMMAND, options


async def test_a_checkpoint_error_reaches_the_caller_as_itself(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        await EngineSupervisor(options(tmp_path / "nowhere")).start()


async def test_an_arena_error_reaches_the_caller_as_itself(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="kv_memory"):
        await EngineSupervisor(options(tiny_llama, kv_memory=2**50)).start()


_SMALL_MACHINE = """
import resource, sys
from airi.engine import Engine, EngineOptions, ModelOptions
from airi.errors import MemoryBudgetError
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
models = (ModelOptions(path=sys.argv[1]),)
try:
    Engine(EngineOptions(models=models, kv_memory=2**23, threads=1, max_batch_tokens=2**30))
except MemoryBudgetError as error:
    print(error)
"""


def test_limits_that_do_not_fit_the_memory_are_one_line(tiny_llama: Path) -> None:
    command = [sys.executable, "-c", _SMALL_MACHINE, str(tiny_llama)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("not enough memory: "), done.stderr
    assert "max_batch_tokens" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_download_ends_it_at_once(tmp_path: Path, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_ETAG_TIMEOUT": "600",
            "NO_PROXY": "127.0.0.1",
        }
        encoded = json.dumps({"models": [{"path": "hf://acme/tiny"}]})
        command = [*COMMAND, "--endpoint", f"ipc://{tmp_path}/engine", "--options", encoded]
        with subprocess.Popen(command, env=os.environ | environment) as process:
            connection, _ = silent.accept()  # it asks the hub, and waits
            process.send_signal(number)
            try:
                assert process.wait(60) == 0
            finally:
                process.kill()
                connection.close()


def test_options_that_cannot_be_read_are_one_line_and_status_two(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "--endpoint", f"ipc://{tmp_path}/e", "--options", '{"models": []}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "models is empty" in result.stderr
    assert "Traceback" not in result.stderr
