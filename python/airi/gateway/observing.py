"""What a gateway sees of the rollouts under way, for gates: counts, never a prompt or an answer.

Each gateway keeps what it has seen in a document of its own in the state, for whoever leads to add up. It only grows
and nobody else writes it, so that a gateway that is killed loses what it has seen since it was last written, a second
at most, and nothing is ever counted twice. Whoever leads drops the documents that tell of no rollout under way, those
of gateways that have gone among them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from airi.errors import StateError
from airi.lifecycle.documents import read_each
from airi.lifecycle.observed import Seen, merged
from airi.lifecycle.rollouts import Rollout

if TYPE_CHECKING:
    from airi.state import DocumentRecord

__all__ = ["Documents", "Observing", "SeenByAll", "is_json", "is_repeating"]

log = logging.getLogger("airi.gateway")

_KIND = "seen"
_FLUSH_S = 1.0
_LONGEST_CYCLE = 64
_LEAST_REPEATED = 4
"""Times that a cycle is said, the first one included."""
_LEAST_TOKENS = 32
"""That all of them have together."""


class Documents(Protocol):
    """What is used of a state."""

    async def documents(self, kind: str, *, since: int = 0) -> tuple[list[DocumentRecord], int]:
        """As `Store.documents`."""
        ...

    async def document(self, kind: str, name: str) -> DocumentRecord | None:
        """As `Store.document`."""
        ...

    async def put_document(self, kind: str, name: str, body: str, *, revision: int) -> int | None:
        """As `Store.put_document`."""
        ...

    async def forget_document(self, kind: str, name: str, *, revision: int) -> bool:
        """As `Store.forget_document`."""
        ...


Counts = dict[str, dict[str, Seen]]
"""By rollout and `STAGE:RELEASE`: what is seen at each weight is counted by itself."""


class Observing:
    """What one gateway has seen, by rollout and release.

    *Thread safety*: none; one event loop.
    *Invariant*: what the state has of it never becomes less while its rollout is under way.
    """

    def __init__(self, store: Documents, *, name: str | None = None) -> None:
        """`name`: of this process, and of no other before it or after."""
        self._store = store
        self._name = name or secrets.token_hex(8)
        self._revision = 0
        self._counts: Counts = {}
        self._written = ""

    def of(self, rollout: Rollout, release: str) -> Seen:
        """What counts of a release are added to while its rollout is under way, and has this weight."""
        return self._counts.setdefault(rollout.id, {}).setdefault(f"{rollout.stage}:{release}", Seen())

    def forget(self, is_over: Callable[[str], bool]) -> None:
        """Drops what was seen within rollouts, by their ids, that nobody will judge any more."""
        for rollout in [each for each in self._counts if is_over(each)]:
            del self._counts[rollout]

    async def flush(self) -> None:
        """Writes what is not written yet. Raises StateError."""
        body = msgspec.json.encode(self._counts).decode()
        if body == (self._written or "{}"):
            return
        revision = await self._store.put_document(_KIND, self._name, body, revision=self._revision)
        if revision is None:  # dropped, or a write before this one was done although the state did not say so
            record = await self._store.document(_KIND, self._name)
            self._revision = 0 if record is None else record.revision
            revision = await self._store.put_document(_KIND, self._name, body, revision=self._revision)
        if revision is not None:
            self._revision, self._written = revision, body

    async def run(self) -> None:
        """Flushes every second until it is cancelled, and once more then."""
        failing = False
        try:
            while True:
                await asyncio.sleep(_FLUSH_S)
                try:
                    await self.flush()
                except StateError as error:
                    if not failing:
                        log.warning("what was seen of rollouts cannot be kept at the moment: %s", error)
                    failing = True
                else:
                    failing = False
        finally:
            try:
                await self.flush()
            except StateError as error:
                log.warning("what was seen of rollouts in the last seconds is lost: %s", error)


class SeenByAll:
    """What all gateways have seen, as the state has it: `airi.lifecycle.controller.Observations`.

    *Thread safety*: none; one event loop.
    """

    def __init__(self, store: Documents) -> None:
        self._store = store
        self._since = 0
        self._parts: dict[str, Counts] = {}
        self._unread: dict[str, str] = {}

    async def of(self, rollout: Rollout, *, at_weight: bool = False) -> tuple[Seen, Seen]:
        """Of the stable release and of the candidate: since the rollout began, or, `at_weight`, since its last weight
        was set. Raises StateError."""
        records, since = await self._store.documents(_KIND, since=self._since)
        read_each(records, self._keep, self._unread)
        self._since = since
        counts = [each for part in self._parts.values() for each in part.get(rollout.id, {}).items()]
        stages = {str(rollout.stage)} if at_weight else {key.partition(":")[0] for key, _ in counts}
        stable, candidate = (
            merged(seen for key, seen in counts if key in {f"{stage}:{release}" for stage in stages})
            for release in (rollout.stable, rollout.candidate)
        )
        return stable, candidate

    def _keep(self, record: DocumentRecord) -> None:
        self._parts[record.name] = msgspec.json.decode(record.body, type=Counts)

    def drop(self) -> None:
        """Holds nothing of what was read: who leads again reads it anew, and nothing that others have dropped."""
        self._since = 0
        self._parts.clear()
        self._unread.clear()

    async def forget(self, under_way: Callable[[], Awaitable[Collection[str]]]) -> None:
        """Drops the documents that tell of no rollout that is under way. Raises StateError.

        A gateway that lives puts its own again once it sees more. `under_way` gives the ids of those rollouts, and is
        asked behind the documents: what they tell of had begun when they were written.
        """
        records, _ = await self._store.documents(_KIND)
        going = set(await under_way())
        for record in records:
            try:
                counts = msgspec.json.decode(record.body, type=Counts)
            except msgspec.MsgspecError:  # told where it was read; who wrote it may still need it
                continue
            if going.isdisjoint(counts):
                await self._store.forget_document(_KIND, record.name, revision=record.revision)
                self._parts.pop(record.name, None)


def is_repeating(tokens: Sequence[int]) -> bool:
    """Whether an answer ends by saying the same up to 64 tokens again and again: 4 times at least, 32 tokens in all."""
    count = len(tokens)
    for cycle in range(1, min(_LONGEST_CYCLE, count // _LEAST_REPEATED) + 1):
        needed = max(_LEAST_REPEATED * cycle, _LEAST_TOKENS)
        if needed > count:
            continue
        if all(tokens[at] == tokens[at - cycle] for at in range(count - 1, count - 1 - needed + cycle, -1)):
            return True
    return False


def is_json(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        _: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False
    return True
