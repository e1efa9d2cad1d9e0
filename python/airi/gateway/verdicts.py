"""Whether answers meet the schemas that their requests declared: found out beside all calls, in a bounded way."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from typing import Final

from airi.gateway.declared import Claim
from airi.lifecycle.observed import Seen

__all__ = ["Verdicts"]

log = logging.getLogger("airi.gateway")

_MOST: Final = 64
_LONGEST: Final = 256 << 10
_IDLE_S: Final = 60.0


class Verdicts:
    """Judges answers that have ended, one after the other, by `airi.gateway.schema_process`.

    An answer that comes while 64 wait, whose texts and schemas have more than 256 Ki characters, or that costs more
    than that process may take, is counted as not judged, whatever release it is of.

    *Thread safety*: none; one event loop.
    *Invariant*: of an answer nothing is held but until it is judged; the process is there only while there are answers,
    and a minute longer.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[tuple[Claim, ...], Seen]] = deque()
        self._judge = _Judge()
        self._task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._is_closed = False

    @property
    def is_idle(self) -> bool:
        """Whether all that was offered is counted."""
        return not self._waiting

    def offer(self, claims: Sequence[Claim], seen: Seen) -> None:
        """Has an answer judged and counted."""
        size = sum(len(claim.schema) + len(claim.text) for claim in claims)
        if self._is_closed or len(self._waiting) >= _MOST or size > _LONGEST:
            seen.unjudged += 1
            return
        self._waiting.append((tuple(claims), seen))
        self._more.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Judges nothing any more."""
        self._is_closed = True
        self._waiting.clear()
        self._more.set()
        self._judge.kill()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while await self._is_more():
            claims, seen = self._waiting[0]
            try:
                said = await asyncio.to_thread(self._judge.ask, claims)
            except OSError as error:
                log.error("no answers can be judged by schemas: %s", error.strerror)
                said = None
            _count(said, seen)
            if self._waiting:
                self._waiting.popleft()
        await asyncio.to_thread(self._judge.stop)
        self._task = None
        if self._waiting:  # one came meanwhile
            self._task = asyncio.create_task(self._run())

    async def _is_more(self) -> bool:
        """Waits for an answer; False where there is none for a long time, or for ever."""
        self._more.clear()
        if not self._waiting and not self._is_closed:
            try:
                async with asyncio.timeout(_IDLE_S):
                    await self._more.wait()
            except TimeoutError:
                pass
        return bool(self._waiting)


def _count(said: bool | None, seen: Seen) -> None:  # noqa: FBT001
    if said is None:
        seen.unjudged += 1
    else:
        seen.schema_asked += 1
        seen.schema_valid += said


class _Judge:
    """The process. *Thread safety*: one call at a time; `kill` at any time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, claims: Sequence[Claim]) -> bool | None:
        """Whether all of them hold; None where that cannot be told. Raises OSError where no process can be started."""
        process = self._process
        if process is None:
            command = [sys.executable, "-m", "airi.gateway.schema_process"]
            process = self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        said = b""
        try:
            process.stdin.write(json.dumps(claims).encode() + b"\n")
            process.stdin.flush()
            said = process.stdout.readline()
        except OSError:
            pass  # it has ended
        if not said:
            self.stop()
            return None
        verdict: bool | None = json.loads(said)
        return verdict

    def kill(self) -> None:
        """Ends what it does."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Ends it and waits for that."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
