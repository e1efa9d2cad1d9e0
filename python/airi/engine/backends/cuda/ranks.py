"""What the engine tells the processes that hold the other parts of a model, and what they answer.

    engine (rank 0)               worker (rank 1 and up)
    Start            ------->
                     <-------     Ready         its device is there
    Join             ------->                   all meet in the process group
                     <-------     Done
    Load, Probe, Allocate, Bind, Capture
                     ------->
                     <-------     Done or Failed
    Step, Changes, Logits
                     ------->                   nothing comes back; tensors go from device to device
                     <-------     Failed        at any time, and the worker ends

Messages are msgpack behind their length, on a pair of sockets that only the two processes have: when either of them
ends, however it does, the other one reads the end of the stream.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import msgspec

from airi.errors import AiriError, error_from_code

__all__ = [
    "Allocate",
    "Answer",
    "Bind",
    "Capture",
    "Changes",
    "Channel",
    "Done",
    "Failed",
    "Join",
    "Load",
    "Logits",
    "Order",
    "Probe",
    "Ready",
    "Start",
    "Step",
    "answers_of",
    "orders_of",
]


class Start(msgspec.Struct, tag=True, frozen=True):
    """Take your place: the first message."""

    rank: int
    world: int
    device: int | None
    """Index of the GPU; None is the host in its place."""
    max_rows: int
    max_tokens: int
    threads: int
    """With which the host computes."""


class Join(msgspec.Struct, tag=True, frozen=True):
    """Meet the others at this port of the loopback interface."""

    port: int


class Load(msgspec.Struct, tag=True, frozen=True):
    """Load your part of a model, the next one of those that are counted from 0."""

    name: str
    path: str
    dtype: str
    max_model_len: int | None
    kv_cache_dtype: str
    quantization: str | None


class Probe(msgspec.Struct, tag=True, frozen=True):
    """Tell how much memory is free."""


class Allocate(msgspec.Struct, tag=True, frozen=True):
    """Take the memory for keys and values."""

    num_bytes: int


class Bind(msgspec.Struct, tag=True, frozen=True):
    """Bind a model to the arena and a block table of its own."""

    model: int
    block_size: int
    slots: int
    columns: int


class Capture(msgspec.Struct, tag=True, frozen=True):
    """Compile and capture together; behind it comes the batch, all padding."""

    model: int


class Changes(msgspec.Struct, tag=True, frozen=True):
    """Behind it come changes of the block table, so many rows of them, how many apply, and what each clears."""

    model: int
    rows: int


class Step(msgspec.Struct, tag=True, frozen=True):
    """Run a step; behind it comes the batch."""

    model: int
    num_rows: int
    num_tokens: int
    num_logits: int
    query_start: bytes
    """int32 [num_rows + 1]"""
    seq_lens: bytes
    """int32 [num_rows]"""


class Logits(msgspec.Struct, tag=True, frozen=True):
    """Make logits of other tokens of the latest step; behind it come their indices, so many."""

    model: int
    count: int


Order = Start | Join | Load | Probe | Allocate | Bind | Capture | Changes | Step | Logits


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The worker's device is there."""

    kind: str
    """What devices that share a model must have in common."""


class Done(msgspec.Struct, tag=True, frozen=True):
    """The last order was carried out."""

    value: int = 0
    """Bytes that are free, where that was asked."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """It was not."""

    code: str
    """Of `airi.errors`."""
    message: str
    field: str | None = None

    def error(self, who: str) -> AiriError:
        """As it is raised in the engine."""
        return error_from_code(self.code, f"{who}: {self.message}", self.field)


Answer = Ready | Done | Failed

_LENGTH = struct.Struct("<I")


class Channel:
    """One end of the pair. *Thread safety*: one thread may send while another one receives."""

    def __init__(self, end: socket.socket, decoder: msgspec.msgpack.Decoder[Order | Answer]) -> None:
        self._socket = end
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: Order | Answer) -> None:
        """Raises OSError where the other end is gone."""
        body = self._encoder.encode(message)
        self._socket.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self) -> Order | Answer | None:
        """The next message; None at the end of the stream, or of what makes sense."""
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            return self._decoder.decode(self._read(length))
        except (EOFError, OSError, msgspec.DecodeError):
            return None

    def _read(self, count: int) -> bytearray:
        body = bytearray(count)
        view = memoryview(body)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return body

    @property
    def fd(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ends the stream on both sides, whoever else holds the descriptor."""
        with suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def orders_of(end: socket.socket) -> Channel:
    """The worker's end."""
    return Channel(end, msgspec.msgpack.Decoder(Order))


def answers_of(end: socket.socket) -> Channel:
    """The engine's end."""
    return Channel(end, msgspec.msgpack.Decoder(Answer))
