"""The compile gate: what it refuses, and that what ships passes it.

It runs in processes of its own: the tests beside this one make Triton interpret, which it reads once per process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A fifth of a second per kernel that did not change; otherwise half a second to two.
TIMEOUT_S = 280


def compile_gate(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "tools.compile_gate", *args],
        cwd=ROOT,
        env=inherited | (env or {}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """The verdicts on kernels that are bad in one way each, by (name, arch)."""
    path = tmp_path_factory.mktemp("gate") / "verdicts.json"
    table = "tests.kernels.gate_kernels"
    done = compile_gate(
        "--table", table, "--arch", "sm_90", "sm_89", "gfx942", "--jobs", "2", "--json", str(path)
    )
    assert done.returncode == 1, done.stdout + done.stderr
    verdicts = {(v["name"].split("/")[0], v["arch"]): v for v in json.loads(path.read_text())}
    # Every finding is also a line of the output, naming kernel and architecture.
    for verdict in verdicts.values():
        for finding in verdict["findings"]:
            assert f"FAIL {verdict['name']} on {verdict['arch']}: {finding}" in done.stdout
    return verdicts


@pytest.mark.parametrize(
    ("name", "arch", "finding"),
    [
        ("spills", "sm_90", "bytes of spilled registers and stack: found "),
        ("spills", "sm_90", "loads and stores of spilled registers: found "),
        ("spills", "gfx942", "bytes of spilled registers and stack: found "),
        ("narrow", "sm_90", "loads of one or two bytes: found "),
        ("narrow", "sm_90", "bytes of loads under 128 bits: found "),
        ("narrow", "sm_89", "loads of one or two bytes: found "),
        ("narrow", "gfx942", "loads of one or two bytes: found "),
        ("large", "sm_90", "limit 232,448"),
        ("large", "sm_89", "limit 101,376"),
        ("large", "gfx942", "limit 65,536"),
        ("few_rows", "sm_90", "asynchronous matrix instructions: found 0, at least 1 expected"),
        ("bytes", "sm_90", "byte reads of shared memory: found "),
        ("refused", "sm_90", "does not compile: CompileTimeAssertionFailure"),
        ("refused", "gfx942", "N is too small"),
        ("dies", "sm_90", "does not compile: the compiler died (SIGABRT)"),
    ],
)
def test_a_bad_kernel_fails_with_what_was_found_and_the_limit(
    refused: dict[tuple[str, str], Any], name: str, arch: str, finding: str
) -> None:
    assert any(finding in line for line in refused[name, arch]["findings"]), refused[name, arch]


@pytest.mark.parametrize("arch", ["sm_90", "sm_89", "gfx942"])
def test_a_good_kernel_passes(refused: dict[tuple[str, str], Any], arch: str) -> None:
    assert refused["good", arch]["findings"] == []


def test_warp_specialisation_is_seen_to_load_tiles_and_to_multiply_asynchronously(
    refused: dict[tuple[str, str], Any],
) -> None:
    verdict = refused["specialised", "sm_90"]
    assert verdict["findings"] == []
    assert verdict["measured"]["tile_loads"] > 0
    assert verdict["measured"]["async_products"] > 0


def test_a_process_that_interprets_is_told_so() -> None:
    done = compile_gate(env={"TRITON_INTERPRET": "1"})
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr


def test_a_name_that_no_kernel_has_is_told() -> None:
    done = compile_gate("--kernel", "no such kernel")
    assert done.returncode == 2
    assert "no kernel of airi.kernels.shipped matches" in done.stderr
