"""Which replica of one model gets a request: the core's router, told of what comes, goes and ends."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airi._core import route
from airi._core.parts import HashChain, KvEventRing
from airi.engine.isolation import CacheRegions
from airi.transport.messages import GenerateRequest, KvHeld, ModelInfo, ModelStats

__all__ = ["KV_EVENT", "Decision", "ModelRouter"]

logger = logging.getLogger(__name__)

KV_EVENT = KvEventRing(1).read(0)[0].dtype
"""Of one record of `KvChanged.events`."""

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
    lost: tuple[str, ...] = ()
    """Replicas that it was sent to before, and that went without an answer."""


class _Hashing:
    """How replicas hash a model's prompts."""

    def __init__(self, held: KvHeld) -> None:
        self.of = _hashing_of(held)
        self.chain = HashChain(held.hash_key, held.hash_seed, held.block_size)
        self.regions = CacheRegions(held.public_prefixes, strict=held.is_isolated)


def _hashing_of(held: KvHeld) -> tuple[object, ...]:
    return held.hash_key, held.hash_seed, held.block_size, held.is_isolated, held.public_prefixes


class ModelRouter:
    """Chooses among the replicas that serve one model.

    What a replica has cached is known where its engine tells, and hashes prompts as the others do; else all that
    counts is what was sent to it.
    *Thread safety*: none; event loop only. *Invariant*: a replica that was not added, drains or was removed is not
    chosen.
    """

    def __init__(self, info: ModelInfo) -> None:
        self._name = info.name
        self._router = route.ReplicaRouter(block_size=info.block_size)
        self._block_size = info.block_size
        # Of our own, until an engine tells of its.
        self._hashing = _Hashing(
            KvHeld(
                model=info.name,
                hash_key=secrets.token_bytes(16),
                hash_seed=b"",
                block_size=info.block_size,
                is_isolated=False,
                public_prefixes=(),
                stored=b"",
            )
        )
        self._exact: set[str] = set()
        """Replicas that hash as we do, and tell what they have."""
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._batch_tokens: dict[str, int] = {}

    @property
    def replicas(self) -> list[str]:
        """Those that were added and not removed."""
        return list(self._numbers)

    def add(self, replica: str, info: ModelInfo) -> None:
        """It serves the model; nothing is cached there yet."""
        number = self._router.add(
            capacity_blocks=max(info.num_kv_blocks, info.num_cacheable_blocks),
            model=info.index,
            max_batch_tokens=info.max_batch_tokens,
        )
        self._batch_tokens[replica] = info.max_batch_tokens
        self._numbers[replica] = number
        self._names = {**self._names, number: replica}

    def drain(self, replica: str) -> None:
        """It gets no more requests."""
        self._router.drain(self._numbers[replica])

    def remove(self, replica: str) -> None:
        """It is gone, with its requests."""
        number = self._numbers.pop(replica)
        self._exact.discard(replica)
        self._names = {each: name for each, name in self._names.items() if each != number}
        self._router.remove(number)

    def count(self, replica: str, stats: ModelStats) -> None:
        """What its engine counts now."""
        number = self._numbers[replica]
        self._router.count(number, waiting=stats.waiting, running=stats.running)
        if stats.step_time is not None:
            self._router.set_step_time(number, stats.step_time, self._batch_tokens[replica])
        if stats.state == "awake":
            self._router.wake(number)
        else:
            self._router.sleep(number, _WAKE_US)

    def hold(self, replica: str, held: KvHeld) -> None:
        """All that it has cached now."""
        if held.block_size != self._block_size:
            return
        if _hashing_of(held) != self._hashing.of:
            if self._exact - {replica}:
                self._exact.discard(replica)
                logger.warning(
                    "replica %s hashes prefixes of %s otherwise than the others (hash_key, paths or isolation differ): "
                    "what it has cached is only guessed",
                    replica,
                    self._name,
                )
                return
            self._hashing = _Hashing(held)
        self._exact.add(replica)
        self._router.replace(self._numbers[replica], np.frombuffer(held.stored, KV_EVENT))

    def apply(self, replica: str, events: NDArray[np.void]) -> None:
        """What has become of its blocks; of other models' nothing is taken."""
        if replica in self._exact:
            self._router.apply(self._numbers[replica], events)

    def num_stored(self, replica: str) -> int:
        """Blocks that it is known to have."""
        return self._router.num_stored(self._numbers[replica])

    def send(self, request: GenerateRequest) -> Decision | None:
        """Chooses a replica and counts the request as sent there; None where none takes requests."""
        began = time.monotonic_ns()
        tokens = np.frombuffer(request.tokens, np.int32)
        given = request.cache_salt, max(0, request.cache_salt_from)
        salts = self._hashing.regions.salts(tokens, request.tenant, *given)
        chain = route.hash_chain(self._hashing.chain, tokens, salts)
        if request.params.prompt_logprobs is not None:
            chain = chain[:0]  # all of it is computed
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
