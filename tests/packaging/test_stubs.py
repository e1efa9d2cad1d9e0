"""The committed stubs say what the compiled core offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What every enum of pybind11 carries, and nobody calls.
ALLOWED = r"airi\._core(\.\w+)*\.__pybind11_native_enum__"


def test_stubs_match_the_compiled_core(tmp_path: Path) -> None:
    allowlist, config = tmp_path / "allowed.txt", tmp_path / "mypy.ini"
    allowlist.write_text(ALLOWED + "\n")
    # The stubs alone: what they import, and the package around them, is what mypy itself checks.
    config.write_text("[mypy]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy.stubtest", "airi._core"]
    command += ["--allowlist", str(allowlist), "--mypy-config-file", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
