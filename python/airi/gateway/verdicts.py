"""Whether answers meet the schemas that their requests declared: found out beside all calls, in a bounded way."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from airi.gateway.declared import Claim, Read
from airi.gateway.observing import is_json
from airi.lifecycle.observed import Seen

__all__ = ["Verdicts"]

log = logging.getLogger("airi.gateway")

Reading = Callable[[int], Read | None]
"""Reads an answer by what was declared of it; None where that has more characters than are asked for."""

_MOST: Final = 64
_LONGEST: Final = 256 << 10
_IDLE_S: Final = 60.0
_MOST_ENDED: Final = 256
"""Schemas that are remembered because judging by them ended the process."""


class Verdicts:
    """Judges answers that have ended, one after the other, by `airi.gateway.schema_process`: tenants in turn.

    An answer is counted as not judged, whatever release it is of, where its texts and schemas have more than 256 Ki
    characters, where it costs more than that process may take, and where too many wait: 64 of all tenants, and of one
    as many as there is room left.

    *Thread safety*: none; one event loop.
    *Invariant*: of an answer nothing is held but until it is judged; the process is there only while there are answers,
    and a minute longer. What one tenant's answers cost delays those of another by one of them at most.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[tuple[Reading, Seen]]] = OrderedDict()
        """By tenant, whose turn it is first; none is empty."""
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        """Schemas of tenants by which judging has ended the process, the last one used last."""
        self._judge = _Judge()
        self._task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._is_closed = False

    @property
    def is_idle(self) -> bool:
        """Whether all that was offered is counted."""
        return not self._waiting

    def offer(self, tenant: str, read: Reading, seen: Seen) -> None:
        """Has an answer to a tenant judged and counted. `read` is called once, in a thread."""
        if self._is_closed or not self._has_room(tenant):
            seen.unjudged += 1
            return
        self._waiting.setdefault(tenant, deque()).append((read, seen))
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

    def _has_room(self, tenant: str) -> bool:
        """Whether one more of a tenant's leaves as much room as it has taken: nobody fills it all alone."""
        left = _MOST - sum(map(len, self._waiting.values()))
        return len(self._waiting.get(tenant, ())) < left

    def _is_known(self, tenant: str, claims: Sequence[Claim]) -> bool:
        """Whether judging by one of the schemas has ended the process: for this tenant, whose text had a part in it."""
        found = [key for key in (_key(tenant, claim) for claim in claims) if key in self._ended]
        for key in found:
            self._ended.move_to_end(key)
        return bool(found)

    async def _run(self) -> None:
        while await self._is_more():
            tenant, waiting = next(iter(self._waiting.items()))
            read, seen = waiting[0]
            try:
                await self._look(tenant, read, seen)
            except OSError as error:
                seen.unjudged += 1
                log.error("no answers can be judged by schemas: %s", error.strerror)
            except Exception as error:  # those that wait are judged none the less
                seen.unjudged += 1
                log.error("an answer cannot be judged by schemas: %s", type(error).__name__)
            finally:
                self._next(tenant)
        await asyncio.to_thread(self._judge.stop)
        self._task = None
        if self._waiting:  # one came meanwhile
            self._task = asyncio.create_task(self._run())

    async def _look(self, tenant: str, read: Reading, seen: Seen) -> None:
        found = await asyncio.to_thread(_read, read)
        if found is None or self._is_known(tenant, found.claims):
            seen.unjudged += 1
            return
        said = None
        try:
            said = await asyncio.to_thread(self._judge.ask, found.claims) if found.claims else None
        except _EndedError:
            self._ended.update(dict.fromkeys(_key(tenant, claim) for claim in found.claims))
            while len(self._ended) > _MOST_ENDED:
                self._ended.popitem(last=False)
        if found.is_json is not None:
            seen.json_asked += 1
            seen.json_valid += found.is_json
        if found.claims:
            _count(said, seen)

    def _next(self, tenant: str) -> None:
        """One of a tenant's is done; it is the next one's turn."""
        waiting = self._waiting.pop(tenant, None)
        if waiting is not None:
            waiting.popleft()
        if waiting:
            self._waiting[tenant] = waiting

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


class _Found(NamedTuple):
    """What an answer is to be, and whether it is JSON, where it was to be."""

    claims: tuple[Claim, ...]
    is_json: bool | None


def _read(read: Reading) -> _Found | None:
    found = read(_LONGEST)
    if found is None:
        return None
    return _Found(found.claims, None if found.json is None else is_json(found.json))


def _count(said: bool | None, seen: Seen) -> None:  # noqa: FBT001
    if said is None:
        seen.unjudged += 1
    else:
        seen.schema_asked += 1
        seen.schema_valid += said


def _key(tenant: str, claim: Claim) -> bytes:
    texts = [text.encode("utf-8", "surrogatepass") for text in (tenant, claim.schema)]
    return blake2b(len(texts[0]).to_bytes(8, "little") + b"".join(texts), digest_size=16).digest()


class _EndedError(Exception):
    """The process ended before it had said anything."""


class _Judge:
    """The process. *Thread safety*: one call at a time; `kill` at any time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, claims: Sequence[Claim]) -> bool | None:
        """Whether all of them hold; None where that cannot be told.

        Raises OSError where no process can be started, and _EndedError where it ends.
        """
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
        if not said.endswith(b"\n"):
            self.stop()
            raise _EndedError
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
