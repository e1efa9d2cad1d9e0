"""The processes that hold the other parts of models, as rank 0 sees them: started, told, watched, ended."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from airi.engine.backends.cuda.budget import first_line
from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.group import Group, listen
from airi.engine.backends.cuda.ranks import (
    Answer,
    Channel,
    Done,
    Failed,
    Join,
    Order,
    Ready,
    Start,
    answers_of,
)
from airi.engine.backends.cuda.shards import Shard
from airi.errors import AiriError, ConfigError, EngineDeadError

__all__ = ["Team", "device_kind"]

_WORKER = "airi.engine.backends.cuda.worker"
_STARTING_S = 300.0
"""What a worker has to import torch and find its device, on a disk that may be slow."""
_ENDING_S = 5.0
_REASON_S = 2.0
"""How long after a collective failed the end of the worker that caused it may become known."""


def device_kind(device: Device) -> str:
    """What devices that share a model must have in common: padding and splitting depend on it."""
    if device.is_host:
        return "cpu"
    import torch

    properties = torch.cuda.get_device_properties(device.torch_device)
    return f"{properties.name} with {properties.multi_processor_count} multiprocessors"


@dataclass(slots=True)
class _Worker:
    rank: int
    name: str
    """For people: "rank 1 (cuda:1)"."""
    process: subprocess.Popen[bytes]
    channel: Channel
    failure: Failed | None = None
    """What it said last, if that was an error."""


class _Crew:
    """The part of a team that threads hold: it does not keep the team alive.

    *Thread safety*: every method may be called from any thread. *Invariant*: `lost` ends once, with the first cause.
    """

    def __init__(self) -> None:
        self.workers: list[_Worker] = []
        self.answers: queue.SimpleQueue[tuple[int, Answer | None]] = queue.SimpleQueue()
        """By rank; None: it has ended."""
        self.lost: Future[NoReturn] = Future()
        """Ends with the error of a rank that cannot go on."""
        self.group: Group | None = None
        self._lock = threading.Lock()
        self._closed = False

    def start(self, rank: int, name: str) -> None:
        """Starts a worker and listens to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = (sys.executable, "-m", _WORKER)
            process = subprocess.Popen(
                (*command, str(theirs.fileno()), str(os.getpid())),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what libraries tell does not belong into this process's output
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in a terminal is rank 0's to answer
            )
        worker = _Worker(rank, name, process, answers_of(ours))
        self.workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), name=f"airi-rank-{rank}", daemon=True).start()

    def _listen(self, worker: _Worker) -> None:
        while (message := worker.channel.receive()) is not None:
            if isinstance(message, Failed):
                worker.failure = message
            if isinstance(message, Answer):
                self.answers.put((worker.rank, message))
        with self._lock:
            closed = self._closed
        if not closed:
            self.lose(worker.failure.error(worker.name) if worker.failure else _death(worker))
        self.answers.put((worker.rank, None))

    def lose(self, error: BaseException) -> None:
        """Gives the team up: whatever waits for another rank ends, and all that comes ends with the first cause."""
        with self._lock:
            if self.lost.done():
                return
            self.lost.set_exception(error)
        self._abort()

    def _abort(self) -> None:
        group = self.group
        if group is not None:
            group.abort()

    def close(self) -> None:
        """Ends all workers and returns when they have; closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._abort()
        for worker in self.workers:
            worker.channel.close()
        for worker in self.workers:
            try:
                worker.process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        with self._lock:
            if not self.lost.done():
                self.lost.set_exception(EngineDeadError("the engine was closed"))


class Team:
    """Rank 0's view of the ranks. Knows nothing of models but in which order ranks are told of them.

    *Thread safety*: none, apart from `lost`. *Invariant*: once a rank is lost, every method but `close` raises what
    it was lost with, and no call waits for it longer than its end takes.
    """

    def __init__(
        self, device: Device, world: int, *, first_device: int, max_rows: int, max_tokens: int
    ) -> None:
        """Starts the workers and has all ranks meet; raises ConfigError or EngineDeadError."""
        self._device = device
        self._crew = _Crew()
        self.lost = self._crew.lost
        """Ends, with the error, when a rank cannot go on."""
        self._close = weakref.finalize(self, self._crew.close)
        try:
            for rank in range(1, world):
                index = None if device.is_host else first_device + rank
                self._crew.start(
                    rank, f"rank {rank} (cpu)" if index is None else f"rank {rank} (cuda:{index})"
                )
                self._send(rank, _start(rank, world, index, max_rows, max_tokens))
            self._check_kinds()
            self.group = self._meet(world)
        except BaseException:
            self.close()
            raise

    def raise_if_lost(self) -> None:
        """Raises what a rank was lost with."""
        if self.lost.done():
            raise self._crew_error()

    def tell(self, order: Order) -> None:
        """Sends all workers an order for which nothing comes back."""
        self.raise_if_lost()
        for worker in self._crew.workers:
            self._send(worker.rank, order)

    def ask(self, order: Order) -> list[int]:
        """Has all workers carry out an order; what they answered, by rank. Raises what one of them failed with."""
        with self.alongside(order) as values:
            pass
        return values

    @contextmanager
    def alongside(self, order: Order) -> Iterator[list[int]]:
        """Has the workers carry out an order while the block does rank 0's part; what it gives is theirs, afterwards.

        Nobody goes on without the others: where one fails, the team is closed and the error raised, with the rank.
        """
        values: list[int] = []
        try:
            self.tell(order)
            yield values
            values += [answer.value for answer in self._collect() if isinstance(answer, Done)]
        except BaseException as error:
            cause = self._cause(error)
            if isinstance(cause, AiriError):
                self._crew.lose(cause)
            self.close()
            if cause is error:
                raise
            raise cause from None

    @contextmanager
    def lockstep(self) -> Iterator[None]:
        """For what all ranks do together in a step; where it fails on rank 0, the ranks are out of step for good."""
        try:
            yield
        except Exception as error:
            cause = self._cause(error)
            if not isinstance(cause, AiriError):
                cause = EngineDeadError(f"rank 0 ({self._device.description}): {_line(error)}")
            self._crew.lose(cause)
            raise self._crew_error() from error
        except BaseException as error:
            self._crew.lose(EngineDeadError(f"rank 0 ({self._device.description}): {_line(error)}"))
            raise

    def close(self) -> None:
        """Ends the workers; closing twice does nothing."""
        self._close()

    def _crew_error(self) -> BaseException:
        error = self.lost.exception() or EngineDeadError("a rank was lost")
        return error.with_traceback(None)  # or it would grow each time that it is raised

    def _cause(self, error: BaseException) -> BaseException:
        """The end of a worker where that is why something failed here, else the error itself."""
        if isinstance(error, AiriError) or not isinstance(error, RuntimeError | OSError):
            return error
        if type(error).__name__ != "OutOfMemoryError":
            with suppress(TimeoutError):
                self.lost.exception(_REASON_S)
        return self._crew_error() if self.lost.done() else error

    def _send(self, rank: int, order: Order) -> None:
        try:
            self._crew.workers[rank - 1].channel.send(order)
        except OSError as error:
            raise self._cause(error) from None

    def _collect(self) -> list[Answer]:
        """One answer of every worker, by rank; raises the first failure."""
        found: dict[int, Answer] = {}
        while len(found) < len(self._crew.workers):
            rank, answer = self._crew.answers.get()
            if answer is None:
                raise self._crew_error()
            if isinstance(answer, Failed):
                raise answer.error(self._crew.workers[rank - 1].name)
            found[rank] = answer
        return [found[rank] for rank in sorted(found)]

    def _check_kinds(self) -> None:
        answers = self._collect()
        ours = device_kind(self._device)
        for worker, answer in zip(self._crew.workers, answers, strict=True):
            if isinstance(answer, Ready) and answer.kind != ours:
                raise ConfigError(
                    f"tensor_parallel_size is {len(self._crew.workers) + 1}; the devices must be alike, but rank 0 is "
                    f"{ours} and {worker.name} is {answer.kind}",
                    field="tensor_parallel_size",
                )

    def _meet(self, world: int) -> Group:
        """Rank 0's end of the group. What may hang in a library, while another rank dies, hangs in a thread."""
        store, port = listen()
        shard, device = Shard(0, world), self._device

        def join() -> Group:
            with device.active():
                return Group(shard, device.torch_device, port=port, store=store)

        with self.alongside(Join(port)):
            joined = _in_background(join)
            wait([cast("Future[Any]", joined), self.lost], _STARTING_S, FIRST_COMPLETED)
            if not joined.done():
                self.raise_if_lost()
                raise EngineDeadError(f"the ranks did not meet within {_STARTING_S:g} s")
            self._crew.group = joined.result()
        return self._crew.group


def _in_background(work: Callable[[], Group]) -> Future[Group]:
    done: Future[Group] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="airi-meeting", daemon=True).start()
    return done


def _start(rank: int, world: int, device: int | None, max_rows: int, max_tokens: int) -> Start:
    import torch

    return Start(rank, world, device, max_rows, max_tokens, torch.get_num_threads())


def _death(worker: _Worker) -> EngineDeadError:
    """How a worker ended that said nothing."""
    try:
        code = worker.process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        return EngineDeadError(f"{worker.name} closed its connection")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
    return EngineDeadError(f"{worker.name} ended with {how}")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
