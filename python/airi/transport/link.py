"""The client's socket to one engine process, in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import zmq

from airi.errors import ConfigError
from airi.transport.messages import ClientMessage, encode, set_heartbeat

__all__ = ["EngineLink"]

# Messages handled per wake-up before other callbacks of the loop get their turn.
_MESSAGES_PER_WAKEUP = 64


class EngineLink:
    """Sends messages, hands over each frame that comes, and says once that the connection broke.

    One per engine process: nothing queued for a dead one reaches the next. Knows nothing of requests.
    *Thread safety*: none; event loop only. *Invariant*: after `close`, nothing is handed over.
    """

    def __init__(
        self, endpoint: str, *, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> None:
        """`on_lost` is called after every frame that came before the connection broke. Raises ConfigError."""
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        set_heartbeat(self._socket)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self._close_sockets()
            raise ConfigError(
                f"endpoint is {endpoint!r}; give ipc://PATH or tcp://HOST:PORT", field="endpoint"
            ) from None
        self._loop.add_reader(self._socket.FD, self._on_readable)
        self._loop.add_reader(self._monitor.FD, self._on_monitor)
        self._loop.call_soon(self._on_monitor)  # edge-triggered: read once, or the first edge is missed

    def send(self, message: ClientMessage) -> None:
        """Queues a message."""
        with suppress(zmq.Again):
            self._socket.send(encode(message), zmq.NOBLOCK)
        # The descriptor is edge-triggered: sending may have consumed the edge of something readable.
        if int(self._socket.EVENTS) & zmq.POLLIN:
            self._loop.call_soon(self._on_readable)

    def close(self) -> None:
        """Ends the connection; closing twice does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._socket.FD)
        self._loop.remove_reader(self._monitor.FD)
        self._close_sockets()

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()

    def _on_readable(self) -> None:
        if self._receive_some():
            self._loop.call_soon(self._on_readable)

    def _receive_some(self) -> bool:
        """Handles what has come; returns whether there may be more."""
        for _ in range(_MESSAGES_PER_WAKEUP):
            if self._is_closed:
                return False
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._on_frame(frame)
        return True

    def _on_monitor(self) -> None:
        if self._is_closed:
            return
        lost = False
        while True:
            try:
                self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            lost = True
        if lost:
            while self._receive_some():  # what it sent before it went still counts
                pass
            if not self._is_closed:
                self._on_lost()
