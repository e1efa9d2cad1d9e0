"""The wheel that `make wheel` builds, installed into an empty environment, serves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEELHOUSE = ROOT / "wheelhouse"

pytestmark = pytest.mark.slow  # about two minutes: a new environment with torch


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = sorted(WHEELHOUSE.glob("airi-*.whl"))
    assert len(found) == 1, (
        f"expected one wheel in {WHEELHOUSE}, found {[p.name for p in found]}; run `make wheel`"
    )
    return found[0]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the executables of a new virtual environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    return folder / "bin"


def test_wheel_has_a_manylinux_tag_and_no_torch_library(wheel: Path) -> None:
    assert "manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        core = next(name for name in names if name.startswith("airi/_core") and name.endswith(".so"))
        assert b"libtorch" not in archive.read(core)
    assert "airi/kernels/reference/__init__.py" in names
    assert "airi/py.typed" in names
    assert any(name.startswith("airi/builtin/airi-demo/") and name.endswith(".safetensors") for name in names)


def test_built_in_model_fits_ten_megabytes_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = [e for e in archive.infolist() if e.filename.startswith("airi/builtin/airi-demo/")]
    assert 0 < sum(e.compress_size for e in entries) <= 10_000_000


def ask(port: int) -> str:
    """The built-in model's answer to a greeting."""
    body = {"model": "airi-demo", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def test_installed_wheel_serves_the_built_in_model(environment: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(environment / "airi"), "serve", "--port", str(port)]
    # Nothing of this checkout may be found: another folder, no PYTHONPATH.
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with subprocess.Popen(command, cwd=tmp_path, env=clean) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, f"the server ended with {server.returncode}"
                try:
                    answer = ask(port)
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.1)
            else:
                pytest.fail("no answer within a minute")
            assert answer.strip()
        finally:
            server.terminate()
            assert server.wait(30) == 0
