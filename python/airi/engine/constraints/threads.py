"""Threads beside the steps, of which no caller's forms take more than one at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["RuleThreads"]

T = TypeVar("T")


class RuleThreads(ThreadPoolExecutor):
    """Makes the rules of requests.

    *Thread safety*: any thread may call it. *Invariant*: of what was submitted for one tenant at most one is being done
    or in the queue of all; the rest waits behind it, in order.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="airi-rules")
        self._lanes_lock = threading.Lock()
        self._lanes: dict[int, deque[Callable[[], None]]] = {}

    def submit_for(self, tenant: int, work: Callable[..., T], *args: Any) -> Future[T]:
        """As `submit`, once what was submitted for the tenant before is done."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(work(*args))
            except BaseException as error:
                future.set_exception(error)
            finally:
                self._go_on(tenant)

        with self._lanes_lock:
            waiting = self._lanes.get(tenant)
            if waiting is not None:
                waiting.append(run)
                return future
            self._lanes[tenant] = deque()
        self.submit(run)
        return future

    def _go_on(self, tenant: int) -> None:
        with self._lanes_lock:
            waiting = self._lanes[tenant]
            if not waiting:
                del self._lanes[tenant]
                return
            run = waiting.popleft()
        self.submit(run)
