"""The checks of every kernel, on a GPU; `AIRI_REQUIRE_GPU=1 pytest -m gpu` where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.gpu
@pytest.mark.timeout(900)  # the suite itself ends within 540 s
@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("AIRI_REQUIRE_GPU") != "1", reason="no GPU"
)
def test_every_kernel_passes_its_checks_on_the_gpu() -> None:
    arguments = ["-m", "benches.gpu.run", "--suite", "check"]
    # Kernels that are compiled, whatever this process runs them in.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
