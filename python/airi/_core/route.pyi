"""Which replica of a model gets a request. Times are integer microseconds where they go in, floats where predicted.

A chain is a structured array of hashes (`lo`, `hi`), events are what `Runtime.read_kv_events` and `kv_snapshot` give:
neither is copied. Calls keep the GIL.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from airi._core import _PybindType
from airi._core.parts import HashChain

_Pieces = Sequence[tuple[float, float, float, float, float]]

MAX_REPLICAS: Final[int]

def hash_chain(
    chain: HashChain, tokens: npt.NDArray[np.int32], salts: Sequence[tuple[int, bytes]] = ...
) -> npt.NDArray[np.void]:
    """The hashes of a prompt's full blocks, as the core makes them; salts as `Runtime.submit` takes them."""

class Candidate(metaclass=_PybindType):
    """Why one replica was chosen, or not."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    @property
    def replica(self) -> int: ...
    @property
    def stored_tokens(self) -> int:
        """Of the prompt, that it has cached as its events tell."""

    @property
    def cached_tokens(self) -> int:
        """The same with what was sent to it and is not told to be stored yet."""

    @property
    def outstanding_requests(self) -> int: ...
    @property
    def outstanding_tokens(self) -> int:
        """Of prompts, still to be computed."""

    @property
    def load_us(self) -> float:
        """What all that is outstanding takes."""

    @property
    def wake_us(self) -> float: ...
    @property
    def wait_us(self) -> float:
        """For prompts that are outstanding."""

    @property
    def prefill_us(self) -> float:
        """For the rest of this prompt."""

    @property
    def delay_us(self) -> float:
        """That it brings to others: to whoever is sent there next, and to all streams that run there."""

    @property
    def last_sent(self) -> int:
        """When it was sent a request, by the count of requests; 0: never."""

    @property
    def is_overloaded(self) -> bool:
        """Left out."""

    @property
    def ttft_us(self) -> float:
        """wake_us + wait_us + prefill_us."""

    @property
    def score_us(self) -> float:
        """ttft_us + delay_us: the least is chosen."""

class Choice(metaclass=_PybindType):
    """The replica to send a request to, and all that it was chosen from."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    @property
    def replica(self) -> int: ...
    @property
    def candidates(self) -> list[Candidate]: ...

class ReplicaRouter(metaclass=_PybindType):
    """Chooses the replica of one model for each request; up to MAX_REPLICAS of them.

    load_guard: replicas with more outstanding work than this many times the mean, and what the
    request takes where it takes the most, are left out.
    sent_ttl_us, sent_blocks: how long, and how many of all, blocks that were sent and not told to be stored count.
    All methods but `add` raise ValueError for a replica that is not there.
    """

    def __init__(
        self,
        *,
        block_size: int,
        load_guard: float = 1.5,
        sent_ttl_us: int = 60_000_000,
        sent_blocks: int = 1_048_576,
    ) -> None: ...
    def add(
        self,
        *,
        capacity_blocks: int,
        model: int = 0,
        step_time: _Pieces | None = None,
        max_batch_tokens: int = 2048,
    ) -> int:
        """A replica comes; returns its number, which is not given again.

        capacity_blocks: hashes that are kept of it. model: its number in the replica's engine. step_time: as
        `StepTimeModel.pieces` has it; None: nothing is known.
        """

    def drain(self, replica: int) -> None:
        """It gets no more requests."""

    def remove(self, replica: int) -> None:
        """It is gone, with its requests."""

    def sleep(self, replica: int, wake_us: int) -> None:
        """It sleeps; the first request that is sent to it wakes it, which takes so long."""

    def wake(self, replica: int) -> None:
        """It is awake."""

    def set_step_time(self, replica: int, step_time: _Pieces, max_batch_tokens: int = 2048) -> None: ...
    def count(self, replica: int, *, waiting: int, running: int) -> None:
        """What its engine counts now, whoever sent it."""

    def apply(self, replica: int, events: npt.NDArray[np.void]) -> None:
        """What its engine's events tell, in order."""

    def replace(self, replica: int, stored: npt.NDArray[np.void]) -> None:
        """Events were missed: a snapshot takes the place of all that is known."""

    def choose(self, chain: npt.NDArray[np.void], input_tokens: int, *, now_us: int) -> Choice | None:
        """The replica to send a request to; None where none takes requests. Changes nothing."""

    def sent(
        self,
        request_id: int,
        replica: int,
        chain: npt.NDArray[np.void],
        input_tokens: int,
        *,
        now_us: int,
    ) -> None:
        """The request went there."""

    def first_token(self, request_id: int) -> bool:
        """Its prompt is computed; False where it is not outstanding."""

    def ended(self, request_id: int, output_tokens: int) -> bool:
        """For whatever reason; False where it is not outstanding."""

    def num_stored(self, replica: int) -> int:
        """Hashes that are kept of it."""

    def num_left_out(self, replica: int) -> int:
        """Hashes that it told of beyond its capacity."""

    @property
    def memory_bytes(self) -> int:
        """Of the index."""

    def check_invariants(self) -> None: ...
