"""The devices of one model as one: sums, parts side by side, and what rank 0 knows, in the order of their streams.

Built on torch's process groups as objects, without the process's default group, which belongs to whoever uses
torch.distributed in this process already. Rendezvous, and whatever the library listens on, are on the loopback
interface.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airi.engine.backends.cuda.shards import Shard

if TYPE_CHECKING:
    import torch

__all__ = ["Group", "listen"]

logger = logging.getLogger(__name__)

_MEETING = timedelta(seconds=120)
_COLLECTIVE = timedelta(minutes=10)
"""Longer than one rank may compile kernels that the others have."""

_NCCL = {
    "NCCL_SOCKET_IFNAME": "lo",
    # On a timeout the communicator is aborted; the process stays, to say what happened.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "2",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}
"""Read where the group is made. What launchers of other programs set, such as torchrun, would end the process."""


def listen() -> tuple[Any, int]:
    """Rank 0's store, on a free port of the loopback interface, and that port."""
    from torch.distributed import TCPStore

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port: int = listener.getsockname()[1]
        # The store would listen on all interfaces; it takes the socket that it is given.
        store = TCPStore(
            "127.0.0.1",
            port,
            None,
            is_master=True,
            timeout=_MEETING,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
    return store, port


class Group:
    """One rank's end of the group; a `Collective`, and more.

    *Thread safety*: none, but `abort` may be called from any thread. *Invariant*: all ranks call the same methods with
    equal shapes in the same order, each in the stream in which its steps run.
    """

    def __init__(self, shard: Shard, device: torch.device, *, port: int, store: Any = None) -> None:
        """Meets the others; raises RuntimeError where that fails. Rank 0 brings the store of `listen`."""
        import torch
        import torch.distributed as dist

        self.shard = shard
        if store is None:
            store = dist.TCPStore(
                "127.0.0.1", port, None, is_master=False, timeout=_MEETING, wait_for_workers=False
            )
        self._store = store
        self._is_host = device.type == "cpu"
        self._group = _on_host(store, shard) if self._is_host else _on_devices(store, shard)
        # 2.13 calls it so.
        self._gather = getattr(self._group, "all_gather_single", None) or self._group._allgather_base
        self._sum, self._from_first = (
            _synchronous(dist.AllreduceOptions()),
            _synchronous(dist.BroadcastOptions()),
        )
        self._from_first.rootRank = 0
        self._side_by_side = _synchronous(torch._C._distributed_c10d.AllgatherOptions())
        with _environment(_NCCL):  # the first collective makes the communicator
            self.all_reduce(torch.zeros(1, device=device))

    def all_reduce(self, x: torch.Tensor) -> None:
        """As `Collective.all_reduce`."""
        _end(self._group.allreduce([x], self._sum))

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """As `Collective.all_gather`, for x [m, n]."""
        world, (m, n) = self.shard.world, x.shape
        parts = x.new_empty((world * m, n))
        _end(self._gather(parts, x, self._side_by_side))
        return parts.view(world, m, n).transpose(0, 1).reshape(m, world * n)

    def broadcast(self, x: torch.Tensor) -> None:
        """Replaces x by rank 0's."""
        _end(self._group.broadcast([x], self._from_first))

    def abort(self) -> None:
        """Has whatever waits for another rank end, on the devices too. The group is of no use any more.

        Waits for nothing: on devices it tells kernels to end at once, but does not return before all graphs that
        hold them are gone.
        """
        if self._is_host:
            self._abort()
        else:
            with suppress(RuntimeError):  # the interpreter ends, and starts no threads
                threading.Thread(target=self._abort, name="airi-abort", daemon=True).start()

    def _abort(self) -> None:
        try:
            self._group.abort()
        except Exception:
            logger.debug("a process group does not abort", exc_info=True)


def _end(work: Any) -> None:
    """Has the current stream go on behind it; what ran in that stream may have given nothing to wait for."""
    if work is not None:
        work.wait()


def _on_host(store: Any, shard: Shard) -> Any:
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()
    options._timeout = _COLLECTIVE
    options._devices = [ProcessGroupGloo.create_device(interface="lo")]
    return ProcessGroupGloo(store, shard.rank, shard.world, options)


def _on_devices(store: Any, shard: Shard) -> Any:
    """NCCL, or RCCL, which torch calls by the same name."""
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = _COLLECTIVE
    with _environment(_NCCL):
        return ProcessGroupNCCL(store, shard.rank, shard.world, options)


def _synchronous(options: Any) -> Any:
    """Has a collective run in the current stream itself, where torch can do so, rather than beside it."""
    if hasattr(options, "asyncOp"):
        options.asyncOp = False
    return options


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets these variables meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
