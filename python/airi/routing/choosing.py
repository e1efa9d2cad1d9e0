"""Which replica of one model gets a request: the core's router, told of what comes, goes and ends."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import numpy as np

from airi._core import route
from airi._core.parts import HashChain
from airi.transport.messages import GenerateRequest, ModelInfo, ModelStats

__all__ = ["Decision", "ModelRouter"]

_WAKE_US = 10_000_000
"""What a replica that sleeps is behind one that is awake: nobody knows how long it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where a request was sent, and why."""

    replica: str
    model: str
    input_tokens: int
    choice: route.Choice
    names: dict[int, str]
    """Of the candidates of `choice`."""
    took_s: float
    """Time that the decision took."""


class ModelRouter:
    """Chooses among the replicas that serve one model.

    *Thread safety*: none; event loop only. *Invariant*: a replica that was not added, drains or was removed is not
    chosen.
    """

    def __init__(self, info: ModelInfo) -> None:
        self._name = info.name
        self._router = route.ReplicaRouter(block_size=info.block_size)
        # Replicas of which no events are known are told apart by what was sent to them, under hashes of our own.
        self._hashes = HashChain(secrets.token_bytes(16), info.name.encode(), info.block_size)
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}

    @property
    def replicas(self) -> list[str]:
        """Those that were added and not removed."""
        return list(self._numbers)

    def add(self, replica: str, info: ModelInfo) -> None:
        """It serves the model; nothing is cached there yet."""
        number = self._router.add(capacity_blocks=info.num_kv_blocks)
        self._numbers[replica] = number
        self._names = {**self._names, number: replica}

    def drain(self, replica: str) -> None:
        """It gets no more requests."""
        self._router.drain(self._numbers[replica])

    def remove(self, replica: str) -> None:
        """It is gone, with its requests."""
        number = self._numbers.pop(replica)
        self._names = {each: name for each, name in self._names.items() if each != number}
        self._router.remove(number)

    def count(self, replica: str, stats: ModelStats) -> None:
        """What its engine counts now."""
        number = self._numbers[replica]
        self._router.count(number, waiting=stats.waiting, running=stats.running)
        if stats.state == "awake":
            self._router.wake(number)
        else:
            self._router.sleep(number, _WAKE_US)

    def send(self, request: GenerateRequest) -> Decision | None:
        """Chooses a replica and counts the request as sent there; None where none takes requests."""
        began = time.monotonic_ns()
        tokens = np.frombuffer(request.tokens, np.int32)
        salts = [(max(0, request.cache_salt_from), request.cache_salt)] if request.cache_salt else []
        chain = route.hash_chain(self._hashes, tokens, salts)
        length = max(1, len(tokens))
        choice = self._router.choose(chain, length, now_us=began // 1000)
        if choice is None:
            return None
        self._router.sent(request.request_id, choice.replica, chain, length, now_us=began // 1000)
        return Decision(
            replica=self._names[choice.replica],
            model=self._name,
            input_tokens=len(tokens),
            choice=choice,
            names=self._names,
            took_s=(time.monotonic_ns() - began) / 1e9,
        )

    def first_token(self, request_id: int) -> None:
        """Its prompt is computed."""
        self._router.first_token(request_id)

    def ended(self, request_id: int, output_tokens: int) -> None:
        """For whatever reason; a request that was not sent does nothing."""
        self._router.ended(request_id, output_tokens)
