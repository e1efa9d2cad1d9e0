"""What the Makefile makes of a failure, with stand-ins for Python and pip that only say how they were called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# "python -m venv FOLDER" puts itself and a pip there; an upgrade of pip fails while there is a file "offline";
# importing triton fails while there is a file "no-triton".
_PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
  "-c import triton") test ! -e "$(dirname "$CALLS")/no-triton" ;;
  "-m pip install"*) test ! -e "$(dirname "$CALLS")/offline" ;;
esac
"""


pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make (Debian package make)")


class Checkout:
    """A folder in which `make` is run with stand-ins for Python and pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._calls = folder / "calls"
        self._python = folder / "python3"
        self._python.write_text(_PYTHON)
        self._python.chmod(0o755)

    def make(self, target: str) -> tuple[int, list[str]]:
        """Its exit status and what it called."""
        self._calls.write_text("")
        command = ["make", "-f", str(ROOT / "Makefile"), target, f"PYTHON={self._python}"]
        environment = {"PATH": "/usr/bin:/bin", "CALLS": str(self._calls)}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, check=False)
        return done.returncode, self._calls.read_text().splitlines()


def test_an_install_that_failed_early_is_taken_up_where_it_failed(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    upgrade = "python -m pip install --quiet pip>=25.1"
    offline = tmp_path / "offline"
    offline.touch()
    status, called = checkout.make("install")
    assert status != 0
    assert called[-1] == upgrade
    offline.unlink()
    status, called = checkout.make("install")
    assert status == 0
    assert called[1:3] == [upgrade, "pip install --quiet --group build"]
    status, called = checkout.make("install")
    assert status == 0
    assert called == ["pip install --quiet --group build", "pip install --quiet --no-build-isolation ."]


def test_tests_bring_triton_only_where_torch_brought_none(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    install = "pip install --quiet --group triton"
    status, called = checkout.make("install-test")
    assert status == 0
    assert install not in called
    (tmp_path / "no-triton").touch()
    status, called = checkout.make("install-test")
    assert status == 0
    assert called[-1] == install
