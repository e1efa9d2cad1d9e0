"""What the Makefile makes of a failure, with stand-ins for Python and pip that only say how they were called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# "python -m venv FOLDER" puts itself and a pip there; an upgrade of pip fails while there is a file "offline".
_PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
  "-m pip install"*) test ! -e "$(dirname "$CALLS")/offline" ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make (Debian package make)")
def test_an_install_that_failed_early_is_taken_up_where_it_failed(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    python = tmp_path / "python3"
    python.write_text(_PYTHON)
    python.chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), "install", f"PYTHON={python}"]

    def make() -> tuple[int, list[str]]:
        calls.write_text("")
        environment = {"PATH": "/usr/bin:/bin", "CALLS": str(calls)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        return done.returncode, calls.read_text().splitlines()

    upgrade = "python -m pip install --quiet pip>=25.1"
    offline = tmp_path / "offline"
    offline.touch()
    status, called = make()
    assert status != 0
    assert called[-1] == upgrade
    offline.unlink()
    status, called = make()
    assert status == 0
    assert called[1:3] == [upgrade, "pip install --quiet --group build"]
    status, called = make()
    assert status == 0
    assert called == ["pip install --quiet --group build", "pip install --quiet --no-build-isolation ."]
