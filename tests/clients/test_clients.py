"""Outside clients, each in an environment of its own, against `airi serve` as a user starts it.

The first run installs them from the package indices of pip and npm into build/clients: minutes. Further runs: seconds.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .conftest import KEY, Served
from .environments import HERE, clean_environment, node_folder, python_of

PROGRAMS = HERE / "programs"
CLIENTS = ("openai", "anthropic", "langchain", "llama_index", "litellm", "instructor", "agents", "triton")

pytestmark = [
    pytest.mark.slow,  # installing takes minutes, each client up to 30 s
    pytest.mark.timeout(1200),
]


def python_checks() -> list[tuple[str, str]]:
    """Client and name of each check, read without importing what only the clients' environments have."""
    found = []
    for client in CLIENTS:
        tree = ast.parse((PROGRAMS / f"{client}_client.py").read_text())
        names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        found += [(client, name) for name in names if name.startswith("check_")]
    return found


def node_checks() -> list[str]:
    """Names of the checks in the Node program."""
    return re.findall(r"^  async (\w+)\(", (HERE / "node" / "program.mjs").read_text(), re.MULTILINE)


def run(command: list[str], cwd: Path) -> dict[str, str | None]:
    """What each check of a program says: its error, or None."""
    done = subprocess.run(
        command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    return {line["check"]: line["error"] for line in lines}


@pytest.fixture(scope="session")
def run_python(served: Served) -> Callable[[str], dict[str, str | None]]:
    """Runs a client's program, once."""

    @cache
    def results(client: str) -> dict[str, str | None]:
        program = [str(PROGRAMS / "run.py"), f"{client}_client"]
        server = [f"{served.url}/v1", KEY, f"{served.tight_url}/v1", served.grpc]
        return run([str(python_of(client)), *program, *server], PROGRAMS)

    return results


@pytest.mark.parametrize(("client", "check"), python_checks())
def test_python_client(run_python: Callable[[str], dict[str, str | None]], client: str, check: str) -> None:
    error = run_python(client)[check]
    assert error is None, error


@pytest.fixture(scope="session")
def node_results(served: Served) -> dict[str, str | None]:
    """What the Node program says."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        assert not os.environ.get("CI"), f"{missing} missing"
        pytest.skip(f"needs {' and '.join(missing)} (Debian packages nodejs and npm)")
    folder = node_folder()
    return run(["node", "program.mjs", f"{served.url}/v1", KEY], folder)


@pytest.mark.parametrize("check", node_checks())
def test_node_client(node_results: dict[str, str | None], check: str) -> None:
    error = node_results[check]
    assert error is None, error


def test_locust_sees_no_failure(served: Served, tmp_path: Path) -> None:
    command = [
        str(python_of("locust")),
        "-m",
        "locust",
        "-f",
        str(PROGRAMS / "locust_users.py"),
        "--headless",
    ]
    command += ["-u", "8", "-r", "8", "-t", "5s", "-H", served.url, "--json", "--exit-code-on-error", "3"]
    environment = {**clean_environment(), "AIRI_CLIENTS_KEY": KEY}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"whole", "stream"}
    for row in rows.values():
        assert row["num_requests"] > 0
        assert row["num_failures"] == 0
