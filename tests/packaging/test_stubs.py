"""The committed stubs say what the compiled core offers."""

from __future__ import annotations

import subprocess
import sys


def test_stubs_match_the_compiled_core() -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "airi._core"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
