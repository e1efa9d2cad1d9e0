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
pytestmark = pytest.mark.timeout(900)  # 25 s of two cores that are free; they may not be
# What torch's CUDA build of the version in constraints.txt brings.
CUDA_TRITON = "3.7.1"


def compile_gate(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return compiling("tools.compile_gate", *args, env=env)


def compiling(module: str, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        env=inherited | (env or {}),
        capture_output=True,
        text=True,
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
        ("large", "gfx942", "bytes of spilled registers and stack: found "),
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


def test_what_a_llama_3_8b_runs_in_bfloat16_passes() -> None:
    done = compile_gate("--quick", "--arch", "sm_90", "gfx942", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_kernel_and_no_size_of_a_step_is_missing_in_what_ships() -> None:
    # A kernel that specialises on a number of tokens would be compiled in the middle of serving.
    done = compiling("tests.kernels.gate_table")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)  # two cores, nothing in the cache: an hour, where they are slow
def test_everything_that_ships_passes_on_every_architecture() -> None:
    done = compile_gate("--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)  # as above, and 200 MB to fetch
def test_everything_that_ships_passes_with_the_triton_of_torch_for_cuda() -> None:
    folder = ROOT / "build" / f"triton-{CUDA_TRITON}"
    if not (folder / "triton").exists():
        wanted = ["--target", str(folder), f"triton=={CUDA_TRITON}"]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
    # A folder before all others: everything else is this environment's.
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths)}
    version = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    found = subprocess.run(version, env=os.environ | env, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == CUDA_TRITON
    done = compile_gate("--jobs", "2", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
