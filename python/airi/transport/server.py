"""The engine's end of the transport: one ROUTER socket, polled between steps."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from typing import get_args

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from airi.errors import AiriError, ConfigError, RequestError
from airi.outputs import Output
from airi.transport.messages import (
    MAX_REQUEST_ID,
    PROTOCOL,
    Cancel,
    ControlMessage,
    EngineMessage,
    EngineStats,
    Explain,
    Failed,
    GenerateRequest,
    Goodbye,
    Hello,
    KvChanged,
    KvHeld,
    ModelInfo,
    Models,
    Outputs,
    Progress,
    Reply,
    Welcome,
    decode_client_message,
    encode,
    error_info,
    set_heartbeat,
)

__all__ = ["CLIENT_SHIFT", "EngineServer", "Received"]

CLIENT_SHIFT = 40
"""An id inside the engine is `client number << CLIENT_SHIFT | the client's own id`."""

Received = GenerateRequest | Cancel | ControlMessage
"""What the engine is to act on."""

_CALL_TAGS = [cls.__struct_config__.tag for cls in get_args(ControlMessage)]

# Messages that may wait for one client before it counts as gone: minutes of steps, tens of MB. A client that has
# stopped for so long has lost its connection by then (see `set_heartbeat`) and will notice.
_SEND_HIGH_WATER = 50_000


class EngineServer:
    """Talks to any number of clients; knows nothing of models or of what a step is.

    `poll` gives requests, cancels and calls with engine-wide ids; Hello is answered here.
    *Thread safety*: none; one thread polls and sends. *Invariant*: ids of one client never reach another.
    """

    def __init__(self, endpoint: str, *, device: str = "cpu") -> None:
        """Binds `endpoint` (ipc://path or tcp://127.0.0.1:port); raises ConfigError when it cannot."""
        self.engine_id = secrets.token_hex(8)
        self._device = device
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, _SEND_HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        set_heartbeat(self._socket)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(f"endpoint {endpoint} cannot be bound: {error}", field="endpoint") from None
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._numbers: dict[bytes, int] = {}
        self._identities: list[bytes | None] = []
        self._state: Progress | Welcome | Failed = Progress("", "starting", 0.0, 0.0)
        self._stats: EngineStats | None = None
        self._gone: list[int] = []

    @property
    def num_clients(self) -> int:
        """Clients that have introduced themselves and are not known to have gone."""
        return len(self._numbers)

    # -- what clients are told -----------------------------------------------------------------

    def progress(self, progress: Progress) -> None:
        """Tells every client, and those that come later, how far loading is."""
        self._state = progress
        self._broadcast(progress)

    def ready(self, models: Sequence[ModelInfo]) -> None:
        """Tells every client, and those that come later, what is served."""
        self._state = Welcome(self.engine_id, os.getpid(), list(models), device=self._device)
        self._broadcast(self._state)

    def serves(self, models: Sequence[ModelInfo]) -> None:
        """Tells every client, and those that come later, that it serves these from now on."""
        self._state = Welcome(self.engine_id, os.getpid(), list(models), device=self._device)
        self._broadcast(Models(list(models)))

    def fail(self, error: AiriError) -> None:
        """Tells every client, and those that come later, why nothing will be served."""
        self._state = Failed(error_info(error))
        self._broadcast(self._state)

    def goodbye(self, reason: str) -> None:
        """Tells every client that nothing new is accepted."""
        self._broadcast(Goodbye(reason))

    def send_stats(self, stats: EngineStats) -> None:
        """Tells every client the engine's counters; one that comes later gets the latest at once."""
        self._stats = stats
        self._broadcast(stats)

    def send_to(self, number: int, message: KvHeld | KvChanged) -> None:
        """Sends the client of this number something that it has asked to be told."""
        identity = self._identities[number]
        if identity is not None:
            self._send(identity, message)

    def reply(self, call: int, *, error: AiriError | None = None, lines: Sequence[str] = ()) -> None:
        """Answers the call with this engine-wide number."""
        identity = self._identities[call >> CLIENT_SHIFT]
        if identity is not None:
            info = None if error is None else error_info(error)
            self._send(identity, Reply(call & MAX_REQUEST_ID, info, list(lines)))

    def send_outputs(
        self, request_ids: NDArray[np.int64], tokens: NDArray[np.int32], others: Sequence[Output]
    ) -> None:
        """Sends each client its part of a step, one message each.

        `request_ids` [n] and `tokens` [n] are the plain rows; `others` carry engine-wide ids too and are
        changed in place to the client's own.
        """
        if len(self._identities) == 1:
            self._send_columns(0, request_ids, tokens, others)
            return
        owners = request_ids >> CLIENT_SHIFT
        numbers = set(np.unique(owners).tolist())
        by_client: dict[int, list[Output]] = {}
        for output in others:
            by_client.setdefault(output.request_id >> CLIENT_SHIFT, []).append(output)
        for number in numbers | by_client.keys():
            mine = owners == number
            self._send_columns(number, request_ids[mine], tokens[mine], by_client.get(number, ()))

    # -- what clients say ----------------------------------------------------------------------

    def poll(self, timeout_ms: int) -> list[Received]:
        """Waits up to `timeout_ms` (0: not at all) for messages and returns those that have come.

        Request ids in them are engine-wide. What cannot be decoded is answered with an error where its
        sender can be told which request it was, and dropped.
        """
        if timeout_ms and not self._socket.poll(timeout_ms):
            return []
        return self._receive()

    def poll_until(self, done_fd: int, timeout_s: float) -> list[Received]:
        """As `poll`, and returns also when `done_fd` is readable; all that comes in the meantime."""
        received = self._receive()
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(done_fd, zmq.POLLIN)
        until = time.monotonic() + timeout_s
        while (left_ms := (until - time.monotonic()) * 1000) >= 1:
            ready = dict(poller.poll(int(left_ms)))
            if self._socket in ready:
                received += self._receive()
            if not ready or done_fd in ready:
                break
        return received

    def _receive(self) -> list[Received]:
        received: list[Received] = []
        while True:
            try:
                identity, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return received
            except ValueError:  # not two frames: not one of our clients
                continue
            try:
                message = decode_client_message(frame)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                self._refuse_frame(identity, frame, error)
                continue
            if isinstance(message, Hello):
                self._greet(identity, message)
                continue
            number = self._numbers.get(identity)
            if number is None:  # speaks before Hello
                continue
            received.append(_engine_wide(message, number))

    def take_gone(self) -> list[int]:
        """Numbers of clients found gone since the last call; their requests are nobody's now."""
        gone, self._gone = self._gone, []
        return gone

    def close(self) -> None:
        """Closes the socket; what is queued is sent for up to a second more."""
        self._socket.close()
        self._context.term()

    # -- details -------------------------------------------------------------------------------

    def _greet(self, identity: bytes, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            error = ConfigError(f"client speaks protocol {hello.protocol}, the engine {PROTOCOL}")
            self._send(identity, Failed(error_info(error)))
            return
        if identity not in self._numbers:
            self._numbers[identity] = len(self._identities)
            self._identities.append(identity)
        self._send(identity, self._state)
        if self._stats is not None:
            self._send(identity, self._stats)

    def _refuse_frame(self, identity: bytes, frame: bytes, error: Exception) -> None:
        """Answers a request or call whose parameters the engine does not accept; its id sits at a fixed place."""
        info = error_info(RequestError(str(error)))
        try:
            fields = msgspec.msgpack.decode(frame)
            if fields[0] in _CALL_TAGS:
                self._send(identity, Reply(int(fields[1]), info))
                return
            request_id = int(fields[4])
        except (msgspec.DecodeError, ValueError, TypeError, LookupError):
            return
        self._send(identity, Outputs(b"", b"", [Output(request_id, [], "error", error=info)]))

    def _send_columns(
        self, number: int, ids: NDArray[np.int64], tokens: NDArray[np.int32], others: Sequence[Output]
    ) -> None:
        identity = self._identities[number]
        if identity is None or not (len(ids) or others):
            return
        for output in others:
            output.request_id &= MAX_REQUEST_ID
        message = Outputs((ids & MAX_REQUEST_ID).tobytes(), tokens.tobytes(), list(others))
        self._send(identity, message)

    def _broadcast(self, message: EngineMessage) -> None:
        for identity in [i for i in self._identities if i is not None]:
            self._send(identity, message)

    def _send(self, identity: bytes, message: EngineMessage) -> None:
        try:
            self._socket.send_multipart((identity, encode(message)), zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError):  # hung up, or has not read for minutes
            number = self._numbers.pop(identity, None)
            if number is not None:
                self._identities[number] = None
                self._gone.append(number)


def _engine_wide(message: Received, number: int) -> Received:
    base = number << CLIENT_SHIFT
    if isinstance(message, Cancel):
        return Cancel([base | (request_id & MAX_REQUEST_ID) for request_id in message.request_ids])
    if isinstance(message, GenerateRequest):
        message.request_id = base | (message.request_id & MAX_REQUEST_ID)
        return message
    call = base | (message.call & MAX_REQUEST_ID)
    if isinstance(message, Explain):
        return Explain(call, base | (message.request_id & MAX_REQUEST_ID))
    return msgspec.structs.replace(message, call=call)
