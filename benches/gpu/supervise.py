"""Runs a suite's cases in worker processes: one that crashes or hangs costs its case, not the suite."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benches.gpu.budget import Budget

Reply = dict[str, Any]

BASIS = "ceilings"
"""The case whose rates all others are held against: it runs whatever is chosen."""
START_S = 120.0
"""The longest a worker may take to import and to list its cases."""
_PATIENCE_S = 120.0
_PATIENCE = 8
"""A case hangs once it took this long and so many times what it says: a wrong guess must not lose its rows."""
_END_S = 10.0
"""How long an ended process may take to go; one that a device holds on to is left behind."""


class Worker:
    """One worker process. *Thread safety*: none."""

    def __init__(
        self, command: Sequence[str], *, env: dict[str, str] | None = None, cwd: str | None = None
    ) -> None:
        self._stderr = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=env or dict(os.environ),
            cwd=cwd,
        )

    def read(self, timeout_s: float) -> Reply:
        """The next reply; `{"died": why}` where the process ended or took too long."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout else ""
        finally:
            timer.cancel()
        if line:
            reply: Reply = json.loads(line)
            return reply
        if late.is_set():
            return {"died": f"no answer within {timeout_s:.0f} s"}
        try:
            code: int | str = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            code = "no code yet"
        return {"died": f"the process ended with {code}: {self.last_words()}"}

    def ask(self, name: str, timeout_s: float) -> Reply:
        """Runs the case called `name`."""
        try:
            if self._process.stdin:
                self._process.stdin.write(name + "\n")
                self._process.stdin.flush()
        except BrokenPipeError:
            pass  # read() finds out how it ended
        return self.read(timeout_s)

    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def kill(self) -> None:
        """Ends it at once; whoever waits for its answer gets `died`."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process, by force where it does not end by itself."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        if self._process.stdout:
            self._process.stdout.close()
        self._stderr.close()


@dataclass(slots=True)
class Outcome:
    """What became of the cases."""

    hardware: dict[str, str] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Left out: too little time was left."""

    @property
    def failures(self) -> list[tuple[str, str]]:
        return [(r["case"], r["failed"]) for r in self.replies if "failed" in r]

    @property
    def absent(self) -> list[tuple[str, str]]:
        return [(r["case"], r["absent"]) for r in self.replies if "absent" in r]


class NoDevice(Exception):
    """There is no GPU."""


class Suite:
    """Hands cases to `workers` processes, as many as run at a time, until all ran or the time is over."""

    def __init__(
        self,
        start: Callable[[], Worker],
        budget: Budget,
        *,
        workers: int = 1,
        only: Sequence[str] = (),
        on_reply: Callable[[Reply, int, int], None] = lambda _reply, _done, _total: None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """A case that takes longer than `patience_s`, and far longer than it says, hangs: it is ended and named."""
        self._start, self._budget, self._workers = start, budget, workers
        self._only, self._on_reply, self._patience_s = only, on_reply, patience_s
        self._names: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._running: list[Worker] = []

    def run(self, outcome: Outcome) -> None:
        """Fills `outcome` as answers come, so that an interrupt leaves what there is. Raises NoDevice."""
        try:
            self._run(outcome)
        except BaseException:
            for worker in self._running:
                worker.kill()
            raise

    def _run(self, outcome: Outcome) -> None:
        first, hello = self._begin()
        outcome.hardware = hello["hardware"]
        chosen = {n for n, _ in hello["cases"] if not self._only or any(o in n for o in self._only)}
        if not chosen:
            first.close()
            raise ValueError(f"--only matches none of {', '.join(n for n, _ in hello['cases'])}")
        # Without what others are fractions of, they would have none.
        listed = [(n, s) for n, s in hello["cases"] if n in chosen or n == BASIS]
        for entry in listed:
            self._names.put(entry)
        count = min(self._workers, len(listed))
        threads = [
            threading.Thread(target=self._serve, args=(first if i == 0 else None,), daemon=True)
            for i in range(count)
        ]
        for thread in threads:
            thread.start()
        ended = 0
        while ended < count:
            reply = self._answers.get()
            if reply is None:
                ended += 1
                continue
            if "skipped" in reply:
                outcome.skipped.append(reply["skipped"])
            else:
                outcome.replies.append(reply)
            self._on_reply(reply, len(outcome.replies) + len(outcome.skipped), len(listed))

    def _begin(self) -> tuple[Worker, Reply]:
        worker = self._start()
        self._running.append(worker)
        hello = worker.read(START_S)
        if "cases" in hello:
            return worker, hello
        worker.close()
        if "no_device" in hello:
            raise NoDevice(hello["no_device"])
        raise RuntimeError(f"a worker did not start: {hello.get('died')}")

    def _serve(self, worker: Worker | None) -> None:
        try:
            while True:
                try:
                    name, seconds = self._names.get_nowait()
                except queue.Empty:
                    break
                if not self._budget.allows(seconds):
                    self._answers.put({"skipped": name})
                    continue
                try:
                    worker = worker or self._begin()[0]
                except RuntimeError as error:
                    self._answers.put({"case": name, "failed": str(error)})
                    continue
                patience = max(self._patience_s, _PATIENCE * seconds)
                reply = worker.ask(name, max(1.0, min(patience, self._budget.left)))
                if "died" in reply:
                    reply = {"case": name, "failed": reply["died"], "fatal": True}
                self._answers.put(reply)
                if reply.get("fatal"):
                    worker.close()
                    worker = None
        except Exception as error:
            self._answers.put({"case": "a worker", "failed": str(error)})
        finally:
            if worker is not None:
                worker.close()
            self._answers.put(None)


def worker_command(suite: str, device: str, more: Sequence[str] = ()) -> list[str]:
    """How a worker of a suite is started."""
    return [sys.executable, "-m", "benches.gpu.worker", "--suite", suite, "--device", device, *more]
