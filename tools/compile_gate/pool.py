"""Compiles variants in processes of their own, so that a compiler that crashes is a line in the table."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import IO, Any

from triton.runtime.cache import triton_key

from . import judge
from .machine import Measured, measure

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What compiling `name` for `arch` came to; good when `findings` is empty."""

    name: str
    arch: str
    measured: Measured | None
    findings: tuple[str, ...]
    seconds: float

    def lines(self) -> list[str]:
        """One line per finding, naming kernel, architecture, limit and found value."""
        return [f"{self.name} on {self.arch}: {finding}" for finding in self.findings]


@dataclass(slots=True, kw_only=True)
class _Job:
    variant: Any
    process: ForkProcess
    answer: Connection
    output: IO[bytes]
    started: float


def check(variants: Sequence[Any], jobs: int) -> Iterator[Verdict]:
    """Verdicts as they come, `jobs` at a time. The children are forks: kernels need not be importable by name."""
    triton_key()  # a quarter of a second that each child would take: the hash of Triton's own files, kept
    waiting = list(reversed(variants))
    running: list[_Job] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(_start(waiting.pop()))
        oldest = min(job.started for job in running)
        left = max(0.0, oldest + TIMEOUT_S - time.monotonic())
        wait([job.process.sentinel for job in running] + [job.answer for job in running], timeout=left)
        for job in list(running):
            late = time.monotonic() - job.started > TIMEOUT_S
            if job.answer.poll() or not job.process.is_alive() or late:
                running.remove(job)
                yield _finish(job)


def _start(variant: Any) -> _Job:
    context = multiprocessing.get_context("fork")
    answer, answering = context.Pipe(duplex=False)
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the job is finished
    process = context.Process(target=_compile, args=(variant, answering, output.fileno()))
    started = time.monotonic()
    process.start()
    answering.close()
    return _Job(variant=variant, process=process, answer=answer, output=output, started=started)


def _compile(variant: Any, answering: Connection, output: int) -> None:
    # What the compiler prints about a kernel it refuses is told only if it refuses.
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        answering.send(measure(variant.compile()))
    except Exception as error:
        answering.send(f"{type(error).__name__}: {error}")


def _finish(job: _Job) -> Verdict:
    try:
        answer = job.answer.recv() if job.answer.poll() else None
    except EOFError:
        answer = None
    if answer is None and job.process.is_alive():
        answer = f"no end of compiling: found {TIMEOUT_S:,.0f} s, limit {TIMEOUT_S:,.0f} s"
        job.process.kill()
    job.process.join()
    if answer is None:
        answer = f"the compiler died ({_death(job.process.exitcode)})"
    measured = answer if isinstance(answer, Measured) else None
    if measured is not None:
        found = tuple(judge.findings(job.variant.arch, job.variant.expects, measured))
    else:
        found = (f"does not compile: {_first_error(job.output, answer)}",)
    job.output.close()
    return Verdict(
        name=job.variant.name,
        arch=job.variant.arch,
        measured=measured,
        findings=found,
        seconds=time.monotonic() - job.started,
    )


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit status {exitcode}"


def _first_error(output: IO[bytes], answer: str) -> str:
    """The compiler's answer in one line, with the first error that it printed."""
    output.seek(0)
    printed = re.findall(r"error: (.*)", output.read().decode(errors="replace"))
    shown = " ".join(answer.split())[-300:]
    return f"{shown} ({printed[0]})" if printed else shown
