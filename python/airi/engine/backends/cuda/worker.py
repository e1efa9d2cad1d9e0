"""A process that holds one part of the engine's models: `python -m airi.engine.backends.cuda.worker SOCKET PARENT`.

Started by `Team` alone. It does what rank 0 says, in order, and ends when that ends, however it does.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from airi.engine.backends import LoadOptions
from airi.engine.backends.cuda.arena import DeviceArena
from airi.engine.backends.cuda.batch import BatchBuffers
from airi.engine.backends.cuda.budget import LESS_STEPS, LESS_WEIGHTS, enough_memory, first_line
from airi.engine.backends.cuda.detect import obstacle
from airi.engine.backends.cuda.device import CpuDevice, CudaDevice, Device
from airi.engine.backends.cuda.group import Group
from airi.engine.backends.cuda.interface import CudaBinding, CudaModel, CudaStep, TableChanges
from airi.engine.backends.cuda.ranks import (
    Allocate,
    Answer,
    Bind,
    Capture,
    Changes,
    Channel,
    Done,
    Failed,
    Join,
    Load,
    Logits,
    Order,
    Probe,
    Ready,
    Start,
    Step,
    orders_of,
)
from airi.engine.backends.cuda.shards import Shard
from airi.engine.backends.cuda.team import device_kind
from airi.errors import AiriError, ConfigError, EngineDeadError
from airi.outputs import error_info

__all__ = ["main"]

logger = logging.getLogger("airi.engine.worker")

_LOOK_MS = 500
_TOGETHER = (Join, Capture, Changes, Step, Logits)
"""Orders that ranks carry out together: one that fails leaves the others waiting, so the worker ends with it."""


class _Worker:
    """One rank's device, its models and their memory. *Thread safety*: none."""

    def __init__(self, start: Start) -> None:
        self._shard = Shard(start.rank, start.world)
        self._device = _device(start)
        with enough_memory(self._device, "the engine", "what steps are told in", LESS_STEPS):
            self._buffers = BatchBuffers(self._device, start.max_rows, start.max_tokens)
        self._group: Group | None = None
        self._arena: DeviceArena | None = None
        self._models: list[CudaModel] = []
        self._names: list[str] = []
        self._carry_out: dict[type[Any], Callable[[Any], Answer | None]] = {
            Join: self._join,
            Load: self._load,
            Probe: self._probe,
            Allocate: self._allocate,
            Bind: self._bind,
            Capture: self._capture,
            Changes: self._change,
            Step: self._step,
            Logits: self._logits,
        }

    @property
    def kind(self) -> str:
        """As `device_kind`."""
        return device_kind(self._device)

    def carry_out(self, order: Order) -> Answer | None:
        """Does what an order says; None where nothing is to be answered."""
        with self._device.active():
            return self._carry_out[type(order)](order)

    @property
    def _joined(self) -> Group:
        if self._group is None:
            raise RuntimeError("the group comes first")
        return self._group

    def _join(self, order: Join) -> Done:
        self._group = Group(self._shard, self._device.torch_device, port=order.port)
        return Done()

    def _load(self, order: Load) -> Done:
        from airi.engine.backends.cuda.model import CudaBackend

        options = LoadOptions(
            dtype=order.dtype,
            max_model_len=order.max_model_len,
            kv_cache_dtype=order.kv_cache_dtype,
            quantization=order.quantization,
            tensor_parallel_size=self._shard.world,
        )
        with self._enough(order.name, "the weights", LESS_WEIGHTS):
            backend = CudaBackend(self._device, collective=self._joined)
            self._models.append(backend.load_model(Path(order.path), options))
        self._names.append(order.name)
        return Done()

    def _probe(self, _: Probe) -> Done:
        return Done(self._device.memory()[0])

    def _allocate(self, order: Allocate) -> Done:
        self._arena = DeviceArena(self._device, order.num_bytes)
        return Done()

    def _bind(self, order: Bind) -> Done:
        if self._arena is None:
            raise RuntimeError("the arena comes first")
        with self._enough(self._names[order.model], "workspaces", LESS_STEPS):
            import torch

            table = self._device.zeros(4 * order.slots * order.columns).view(torch.int32)
            binding = CudaBinding(
                arena=self._arena.memory,
                block_size=order.block_size,
                block_table=table.view(order.slots, order.columns),
                batch=self._buffers.batch,
            )
            self._models[order.model].bind(binding)
        return Done()

    def _capture(self, order: Capture) -> Done:
        with self._enough(self._names[order.model], "graphs", LESS_STEPS):
            self._joined.broadcast(self._buffers.packed)
            self._models[order.model].capture(None)
            self._device.record().synchronize()
        return Done()

    def _change(self, order: Changes) -> None:
        import torch

        at = self._device.torch_device
        parts = [
            torch.empty(shape, dtype=torch.int32, device=at)
            for shape in ((order.rows, 3), (1,), (order.rows, 2))
        ]
        for part in parts:
            self._joined.broadcast(part)
        self._models[order.model].change_table(TableChanges(*parts))

    def _step(self, order: Step) -> None:
        self._joined.broadcast(self._buffers.packed)
        self._models[order.model].enqueue(
            CudaStep(
                num_rows=order.num_rows,
                num_tokens=order.num_tokens,
                num_logits=order.num_logits,
                query_start=np.frombuffer(order.query_start, np.int32),
                seq_lens=np.frombuffer(order.seq_lens, np.int32),
            )
        )

    def _logits(self, order: Logits) -> None:
        import torch

        rows = torch.empty(order.count, dtype=torch.int32, device=self._device.torch_device)
        self._joined.broadcast(rows)
        self._models[order.model].logits(rows)

    def _enough(self, name: str, what: str, less: str) -> AbstractContextManager[None]:
        return enough_memory(self._device, name, what, less)


def _device(start: Start) -> Device:
    import torch

    if start.device is None:
        torch.set_num_threads(start.threads)
        return CpuDevice()
    problem = obstacle(start.device)
    if problem is not None:
        raise ConfigError(problem, field="device")
    torch.cuda.set_device(start.device)  # for whatever asks for the current one
    return CudaDevice(start.device)


def _failure(error: Exception) -> Failed:
    """An error as it travels; unexpected ones leave their traces in the log."""
    if isinstance(error, AiriError):
        info = error_info(error)
        return Failed(info.code, info.message, info.field)
    logger.error("a worker failed", exc_info=error)
    return Failed(EngineDeadError.code, f"{type(error).__name__}: {first_line(error)}")


def _serve(channel: Channel) -> int:
    """Until rank 0 ends the stream, or something fails that the ranks do together."""
    start = channel.receive()
    if not isinstance(start, Start):
        return 0
    try:
        worker = _Worker(start)
        channel.send(Ready(worker.kind))
    except Exception as error:
        channel.send(_failure(error))
        return 1
    while (order := channel.receive()) is not None:
        try:
            answer = worker.carry_out(cast(Order, order))
        except Exception as error:
            channel.send(_failure(error))
            if isinstance(order, _TOGETHER):
                return 1
        else:
            if answer is not None:
                channel.send(answer)
    return 0


def _end_with(channel: Channel, parent: int) -> None:
    """Ends this process at once when rank 0's has ended, whatever the main thread waits for."""
    poll = select.poll()
    poll.register(channel.fd, 0)  # hang-ups alone, which need no asking for
    while not poll.poll(_LOOK_MS) and os.getppid() == parent:
        pass
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Runs a worker and ends the process."""
    end, parent = (int(argument) for argument in arguments)
    # A service manager signals every process; rank 0 decides what that means, and this process ends with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    channel = orders_of(socket.socket(fileno=end))
    threading.Thread(target=_end_with, args=(channel, parent), daemon=True).start()
    status = 1
    with suppress(OSError):  # nobody is there to be told
        status = _serve(channel)
    os._exit(status)  # threads of libraries that wait for other ranks are not worth waiting for


if __name__ == "__main__":
    main(sys.argv[1:])
