"""What the README shows works: every block of code runs, every link leads somewhere."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airi import builtin
from airi.cli.serve import serve

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
AIRI = [sys.executable, "-m", "airi"]


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_lines() -> list[str]:
    """Each command of the shell blocks, and of the table of benches."""
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return commands + re.findall(r"\| `(python -m [^`]+)` \|", README)


@contextmanager
def serving(arguments: list[str], folder: Path) -> Iterator[str]:
    """`airi serve ARGUMENTS` on a free port; yields its address once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    if arguments == ["airi.yaml"]:  # says that itself
        with (folder / "airi.yaml").open("a") as config:
            config.write(f"server: {{port: {port}}}\n")
    else:
        arguments = [*arguments, "--port", str(port)]
    with subprocess.Popen([*AIRI, "serve", *arguments], cwd=folder) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, f"airi serve ended with {server.returncode}"
                try:
                    with urllib.request.urlopen(f"{address}/ready", timeout=5):
                        break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.1)
            else:
                pytest.fail("the server was not ready within a minute")
            yield address
        finally:
            server.terminate()
            assert server.wait(30) == 0


def run_python(block: str) -> str:
    """The output of one block in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folders that the README names, each the built-in checkpoint under another name."""
    for line in shell_lines():
        for name in re.findall(r"\./(models/\S+)", line):
            link = tmp_path / name
            link.parent.mkdir(exist_ok=True)
            if not link.exists():
                link.symlink_to(builtin.path())
    return tmp_path


def test_python_blocks_run() -> None:
    with_server, without = (
        [b for b in blocks("python") if ("127.0.0.1:8000" in b) == wanted] for wanted in (True, False)
    )
    assert with_server
    assert without
    for block in without:
        assert run_python(block).strip()
    with serving([], ROOT) as address:
        for block in with_server:
            assert run_python(block.replace("http://127.0.0.1:8000", address)).strip()


def test_make_commands_are_targets() -> None:
    targets = [shlex.split(line)[1:] for line in shell_lines() if line.startswith("make ")]
    assert ["serve"] in targets
    assert ["test"] in targets
    for target in targets:
        subprocess.run(["make", "--dry-run", *target], cwd=ROOT, check=True, capture_output=True)


def test_serve_line_serves_every_model_it_names(models: Path) -> None:
    [line] = [line for line in shell_lines() if line.startswith("airi serve ./models")]
    names = [Path(word).name for word in shlex.split(line) if word.startswith("./models/")]
    with (
        serving(shlex.split(line)[2:], models) as address,
        urllib.request.urlopen(f"{address}/v1/models", timeout=30) as response,
    ):
        listed = response.read().decode()
    assert names
    for name in names:
        assert f'"{name}"' in listed


def test_the_config_serves_those_who_have_a_key(tmp_path: Path) -> None:
    [config] = blocks("yaml")
    (tmp_path / "airi.yaml").write_text(config)
    [create] = [line for line in shell_lines() if line.startswith("airi keys")]
    [serve_it] = [line for line in shell_lines() if line.endswith("airi.yaml")]
    made = subprocess.run(
        [*AIRI, *shlex.split(create)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    def status(key: str, max_tokens: int) -> int:
        body = {
            "model": "support",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": max_tokens,
        }
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", data=json.dumps(body).encode(), headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    with serving(shlex.split(serve_it)[2:], tmp_path) as address:
        assert status(made.stdout.strip(), 4) == 200
        assert status(made.stdout.strip(), 2000) == 403
        assert status("none", 4) == 401


def test_chat_line_answers(models: Path) -> None:
    [line] = [line for line in shell_lines() if line.startswith("airi chat")]
    command = [*AIRI, *shlex.split(line)[1:]]
    done = subprocess.run(
        command, input="Hello\n", capture_output=True, text=True, cwd=models, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_bench_lines_run_and_those_of_peers_are_commands() -> None:
    for line in shell_lines():
        words = shlex.split(line)
        if words[:2] == ["airi", "bench"]:
            command, flags = [*AIRI, *words[1:]], []
        elif words[:2] == ["python", "-m"]:
            # A peer's PATH is the reader's own: the flags are parsed, then --help ends it.
            command = [sys.executable, *words[1:], "--help"]
            flags = [word for word in words if word.startswith("--")]
        else:
            continue
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        for flag in flags:
            assert flag in done.stdout, f"{line}: no {flag}"


def test_flags_that_it_names_are_flags() -> None:
    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    [section] = re.findall(r"## What the core decides\n(.*?)\n```", README, flags=re.DOTALL)
    named = set(re.findall(r"--[a-z][a-z-]+", section))
    assert len(named) > 8
    assert named <= known


def test_every_shell_line_is_checked_by_one_of_these() -> None:
    kinds = ("make ", "airi serve", "airi keys", "airi chat", "airi bench", "python -m benches.")
    assert [line for line in shell_lines() if not line.startswith(kinds)] == []


def test_the_fuzzers_count_is_the_makefiles() -> None:
    [seeds] = re.findall(r"^FUZZ_SEEDS \?= (\d+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert f"{int(seeds):,} random sequences of calls" in README


def test_links_and_paths_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    paths = re.findall(r"`((?:csrc|python|kernels|tests|benches|tools)/?[\w/.*]*)`", README)
    for name in links + paths:
        assert list(ROOT.glob(name)), name


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120
