"""Binding before anything heavy loads, and ending in order. Imports nothing heavy itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from airi.errors import ConfigError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Drainable(Protocol):
    """What a signal needs of an HTTP server."""

    should_exit: bool
    force_exit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Told to the caller once requests are answered."""

    url: str
    """Base URL without a trailing slash."""
    models: tuple[str, ...]
    """All names and aliases; the first model's name comes first."""
    needs_key: bool = False
    """Whether callers must have a key or a token."""
    grpc_port: int | None = None
    """Where gRPC is spoken, if anywhere."""


class Stop:
    """Turns SIGTERM and SIGINT into a drain; a second signal ends it without waiting.

    A start-up is cancelled, once: further signals do not interrupt its end, which is short.

    *Thread safety*: none; lives on the main thread's event loop.
    """

    def __init__(self) -> None:
        self._server: Drainable | None = None
        self._loading: asyncio.Task[object] | None = asyncio.current_task()
        self.requested = False

    def serves(self, server: Drainable) -> None:
        """From now on a signal drains `server` instead of ending the start-up."""
        self._server, self._loading = server, None
        server.should_exit = self.requested

    def __call__(self) -> None:
        """Handle one signal."""
        if self._server is not None:
            self._server.force_exit = self.requested
            self._server.should_exit = True
        elif self._loading is not None and not self.requested:
            self._loading.cancel()
        self.requested = True

    @contextlib.contextmanager
    def installed(self) -> Iterator[Stop]:
        """Handles the signals inside the block, where this thread can."""
        loop = asyncio.get_running_loop()
        handled: list[signal.Signals] = []
        try:
            for number in _SIGNALS:
                with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: a test's server
                    loop.add_signal_handler(number, self)
                    handled.append(number)
            yield self
        finally:
            for number in handled:
                loop.remove_signal_handler(number)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: a taken port is known before any model loads."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter: not a host name at all, such as "a..b"
        reason = (isinstance(error, OSError) and error.strerror) or "not a host name"
        raise ConfigError(f"host {host!r} cannot be resolved: {reason}", field="host") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}", field="port") from None
    sock.set_inheritable(False)
    return sock
