"""How far apart versions are, by their files, read behind everything else: what `auto` bounds of gates go by."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from airi.config.changes import change_between
from airi.lifecycle import Version
from airi.lifecycle.gates import Change, widest

__all__ = ["Changes"]

log = logging.getLogger("airi.gateway")

_AGAIN_S = 60.0
"""After which what could not be compared is tried again."""


class Changes:
    """Compares versions in threads, each pair once. *Thread safety*: none; event loop only."""

    def __init__(self, folder_of: Callable[[Version], Path | None]) -> None:
        """`folder_of`: where a version's files are; None: not on this machine yet."""
        self._folder_of = folder_of
        self._known: dict[tuple[str, str], Change | None] = {}
        """By content; None: that was begun, or has failed just now."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = threading.Event()

    def of(self, pairs: Sequence[tuple[Version, Version]]) -> Change | None:
        """The change of all; None until all are here, and compared, which is begun."""
        found: list[Change] = []
        for before, after in pairs:
            if before.digest == after.digest:
                continue
            change = self._of(before, after)
            if change is None:
                return None
            found.append(change)
        return widest(found)

    def _of(self, before: Version, after: Version) -> Change | None:
        key = before.digest, after.digest
        folders = self._folder_of(before), self._folder_of(after)
        if key not in self._known and None not in folders:
            self._known[key] = None
            task = asyncio.create_task(
                self._compare(key, *(folder for folder in folders if folder is not None))
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return self._known.get(key)

    async def _compare(self, key: tuple[str, str], before: Path, after: Path) -> None:
        try:
            self._known[key] = await asyncio.to_thread(change_between, before, after, self._stopped.is_set)
        except Exception as error:  # whatever it is, it is said, and gates hold
            log.error(
                "what %s has changed of %s cannot be told, so auto bounds hold: %s", after, before, error
            )
            await asyncio.sleep(_AGAIN_S)
            self._known.pop(key, None)

    async def close(self) -> None:
        """Ends what is being compared, also in its thread: a process waits for those as it ends."""
        self._stopped.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
