"""Starts the engine process, watches it, and starts it again when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from airi.errors import AiriError, EngineDeadError, EngineStartError
from airi.transport.client import EngineClient, ProgressSink

if TYPE_CHECKING:
    from airi.engine.options import EngineOptions, ModelOptions

__all__ = ["EngineSupervisor"]

logger = logging.getLogger(__name__)

_RETRY_WINDOW_S = 120.0

CommandFactory = Callable[[str], Sequence[str]]


class EngineSupervisor:
    """Owns one engine process and the client connected to it.

    When the process dies it is started again after a growing delay; after `max_failures` deaths in a row, each
    within `healthy_s` of its start, it is given up: `client.dead` says so and every request ends with it.
    *Thread safety*: none; event loop only. *Invariant*: at most one engine process runs, and none after `stop`.
    """

    def __init__(
        self,
        options: EngineOptions | None = None,
        *,
        endpoint: str | None = None,
        command: CommandFactory | None = None,
        on_progress: ProgressSink | None = None,
        drain_s: float = 30.0,
        kill_after_s: float = 5.0,
        log_level: str = "warning",
        max_failures: int = 5,
        first_delay_s: float = 0.2,
        healthy_s: float = 30.0,
        waits_for_restart: bool = True,
    ) -> None:
        """`command` makes another engine's command line from an endpoint; without it `options` says what runs.

        `endpoint` None is a socket in a fresh directory that only this user may enter. `drain_s` is how long
        an engine that somebody else ends (a service manager that signals every process) finishes requests.
        One that `stop` ends, which has none, is killed after `kill_after_s`. `waits_for_restart`: whether requests
        that had not started wait for the next process when one dies, or end at once.
        """
        self._directory: str | None = None
        if endpoint is None:
            self._directory = tempfile.mkdtemp(prefix="airi-")
            endpoint = f"ipc://{self._directory}/engine"
        self.endpoint = endpoint
        self.num_restarts = 0
        """Times that a dead engine has been started again."""
        self._options = options
        self._command = command or self._engine_command(drain_s, log_level)
        self._failures = 0
        """Deaths in a row."""
        self._on_progress = on_progress
        self._kill_after_s = kill_after_s
        self._max_failures = max_failures
        self._first_delay_s = first_delay_s
        self._healthy_s = healthy_s
        self._waits_for_restart = waits_for_restart
        self._process: asyncio.subprocess.Process | None = None
        self._started_at = 0.0
        self._client: EngineClient | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def client(self) -> EngineClient:
        """The client that `start` connected."""
        if self._client is None:
            raise RuntimeError("the engine was not started")
        return self._client

    @property
    def pid(self) -> int | None:
        """The engine process, while one runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> EngineClient:
        """Starts the engine and returns once it serves.

        Raises what loading raised in the engine (CheckpointError, ConfigError), or EngineStartError when the
        process ended without saying why. Nothing is left running then.
        """
        try:
            await self._spawn()
            window_s = _RETRY_WINDOW_S if self._waits_for_restart else 0.0
            self._client = EngineClient(self.endpoint, on_progress=self._on_progress, retry_window_s=window_s)
            await self._wait_ready(self._client)
        except BaseException:
            await self.stop()
            raise
        self._watcher = asyncio.create_task(self._watch())
        return self._client

    async def stop(self) -> None:
        """Ends the engine (SIGTERM, then SIGKILL when it takes too long) and closes the client.

        Requests that still run end with EngineDeadError, in the engine too: whoever wants them waits before.
        """
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        if self._client is not None:
            self._client.give_up(EngineDeadError("the engine was stopped"))
        if self._process is not None:
            await self._end_process(self._process)
        if self._client is not None:
            self._client.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def __aenter__(self) -> EngineClient:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # -- the process ---------------------------------------------------------------------------

    async def _spawn(self) -> None:
        self._started_at = time.monotonic()
        # In a session of its own, or Ctrl-C in the terminal would end the engine under requests that still drain.
        self._process = await asyncio.create_subprocess_exec(
            *self._command(self.endpoint), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )

    async def _wait_ready(self, client: EngineClient) -> None:
        """Waits for the engine to serve, or to end."""
        process = self._process
        if process is None:
            raise RuntimeError("no process to wait for")
        ended = asyncio.create_task(process.wait())
        ready = asyncio.create_task(client.wait_ready())
        try:
            await asyncio.wait((ended, ready), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                # What it said last may still be on its way through the socket.
                await asyncio.wait((ready,), timeout=0.5)
            if ready.done():
                ready.result()
                return
            raise EngineStartError(f"the engine process ended with {_status(process)} before it was ready")
        finally:
            for task in (ended, ready):
                task.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)

    async def _watch(self) -> None:
        """Starts the engine again whenever it ends, until it is given up."""
        while self._process is not None:
            await self._process.wait()
            ran_s = time.monotonic() - self._started_at
            failures = self._failures = 1 if ran_s >= self._healthy_s else self._failures + 1
            logger.error("the engine process ended with %s after %.1f s", _status(self._process), ran_s)
            if failures > self._max_failures:
                break
            await asyncio.sleep(self._first_delay_s * 2 ** (failures - 1))
            self.num_restarts += 1
            try:
                await self._spawn()
            except OSError as error:  # no memory, no more processes: counts as one that ended at once
                logger.error("the engine process cannot be started: %s", error)
        self.client.give_up(
            EngineDeadError(f"the engine process died {failures} times in a row and was given up")
        )

    def _engine_command(self, drain_s: float, log_level: str) -> CommandFactory:
        if self._options is None:
            raise AiriError("an EngineSupervisor needs options or a command")
        options = self._options

        def command(endpoint: str) -> Sequence[str]:
            encoded = msgspec.json.encode(replace(options, models=self._models(options))).decode()
            return (
                *(sys.executable, "-m", "airi.engine.process"),
                *("--endpoint", endpoint, "--options", encoded),
                *("--parent-pid", str(os.getpid()), "--drain-s", str(drain_s), "--log-level", log_level),
            )

        return command

    def _models(self, options: EngineOptions) -> tuple[ModelOptions, ...]:
        """What an engine begins with: what the one before it had; after two deaths what the first one was given."""
        if self._client is None or self._failures > 1:
            return options.models
        changed = self._client.changed
        begun = [model for model in options.models if model.name not in changed]
        return (*begun, *(model for model in changed.values() if model is not None)) or options.models

    async def _end_process(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._kill_after_s)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _status(process: asyncio.subprocess.Process) -> str:
    code = process.returncode
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"status {code}"
