"""vLLM's Scheduler under virtual time, in a process of its own environment that answers one trace after another."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from benches.common import CONTESTANTS, ROOT, plain_parser
from benches.virtual_time import Outcome, Setup, Trace


def peer_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of a bench that runs vLLM with its default budget, and with others if asked to."""
    parser = plain_parser(description, "vllm")
    parser.add_argument(
        "--peer-batch-tokens",
        type=int,
        nargs="*",
        default=[],
        help="budgets of vLLM to be run besides its default",
    )
    return parser


def tuned_setups(peer: VllmPeer, setup: Setup, budgets: Sequence[int]) -> Iterator[tuple[str, Setup]]:
    """What to call the peer with each of `--peer-batch-tokens`, and its limits then."""
    for tokens in budgets:
        name = f"{peer.name}, max_num_batched_tokens {tokens}"
        yield name, replace(setup, max_batch_tokens=tokens)


class VllmPeer:
    """A context manager; `run` raises RuntimeError with the end of the peer's stderr where it fails."""

    def __init__(self, python: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "stderr").open("w+")
        self._process = subprocess.Popen(
            [python, str(CONTESTANTS / "vllm_virtual.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        )
        self.name = "vLLM Scheduler"

    def __enter__(self) -> VllmPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def run(self, trace: Trace, setup: Setup, **options: Any) -> Outcome:
        """The trace through vLLM's Scheduler; `options` are further arguments of its EngineArgs."""
        source, target = (Path(self._folder.name) / f"{name}.npz" for name in ("trace", "outcome"))
        trace.save(source)
        job = {"trace": str(source), "outcome": str(target), "setup": setup.to_json(), "options": options}
        answer = self._ask(json.dumps(job))
        if not answer:
            self._log.seek(0)
            raise RuntimeError(f"the peer ended:\n{self._log.read()[-3000:]}")
        self.name = json.loads(answer)["peer"]
        return Outcome.load(target, trace)

    def _ask(self, line: str) -> str:
        """The answer to a line, or nothing where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()
