"""What other processes write is read behind the searches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from airi.errors import StateError

__all__ = ["Refresher"]

_LOG = logging.getLogger("airi.retrieval")


class Refresher:
    """Calls one function on a thread of its own whenever it was asked to; several asks at once are one call.

    Thread safety: any thread.
    """

    def __init__(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh
        self._is_asked = threading.Event()
        self._is_over = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Costs a microsecond; the thread is started by the first one."""
        self._is_asked.set()
        if self._thread is None:
            with self._starting:
                if self._thread is None and not self._is_over:
                    self._thread = threading.Thread(target=self._run, name="airi-refresh", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """Waits for the call that runs."""
        with self._starting:
            self._is_over = True
        self._is_asked.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._is_asked.wait()
            self._is_asked.clear()
            if self._is_over:
                return
            try:
                self._refresh()
            except StateError as error:
                _LOG.warning("searches go on with what was there before: %s", error)
