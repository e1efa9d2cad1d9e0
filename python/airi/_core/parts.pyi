"""Single pieces of the scheduling core, for tests and for engines with a scheduler of their own.

Hashes are pairs of 64-bit halves (low, high); times are integer microseconds.
"""

import enum
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from airi._core import MemoryOpKind, ModelState, _PybindType

class ExtraKind(enum.IntEnum):
    ADAPTER = 1
    SALT = 2
    MEDIA = 3

class HashChain(metaclass=_PybindType):
    """The keyed hash chain of full blocks. key is 16 bytes; seed names model, KV dtype and layout."""

    def __init__(self, key: bytes, seed: bytes, block_size: int) -> None: ...
    @property
    def root(self) -> tuple[int, int]: ...
    def hashes(
        self, tokens: Sequence[int], extras: Sequence[tuple[ExtraKind, int, bytes]] = ...
    ) -> list[tuple[int, int]]:
        """One hash per full block; extras are (kind, token offset, bytes)."""

class KvEventRing(metaclass=_PybindType):
    """The last events of one writer, for any number of readers; keeps at least `capacity`."""

    def __init__(self, capacity: int) -> None: ...
    def read(self, cursor: int, limit: int = 4096) -> tuple[npt.NDArray[np.void], int, int]:
        """(KV events from the cursor on, cursor to read on from, how many were missed)."""

class BlockPool(metaclass=_PybindType):
    """Reference-counted blocks and the cache of full ones. Keys name their parent by serial, 0 is the root."""

    def __init__(self, capacity: int, block_size: int) -> None: ...
    @staticmethod
    def of_slabs(num_slabs: int, blocks_per_slab: int, block_size: int) -> BlockPool:
        """Blocks slab * blocks_per_slab + i; every slab is absent until add_slab."""

    @property
    def num_present(self) -> int: ...
    def has_slab(self, slab: int) -> bool: ...
    def num_active_in(self, slab: int) -> int: ...
    def num_cached_in(self, slab: int) -> int: ...
    def add_slab(self, slab: int) -> None: ...
    def drain_slab(self, slab: int) -> None:
        """Evicts the slab's cached blocks and hands out none of its blocks until it is removed."""

    @property
    def num_draining(self) -> int: ...
    def remove_slab(self, slab: int) -> None:
        """Evicts the slab's cached blocks; none of its blocks may be active."""

    @property
    def num_free(self) -> int: ...
    @property
    def num_cached(self) -> int: ...
    @property
    def num_active(self) -> int: ...
    def ref_count(self, block: int) -> int: ...
    def is_published(self, block: int) -> bool: ...
    def is_writable(self, block: int) -> bool: ...
    def find(
        self, parent: int, hash: tuple[int, int], tokens: Sequence[int], extras: bytes = b""
    ) -> tuple[int, int] | None:
        """(block, serial) of a published block with these contents; takes no reference."""

    def take(self, count: int) -> list[int] | None:
        """count blocks with one reference each, or None and nothing changes."""

    def take_for(self, tenant: int, outstanding: int, count: int) -> list[int] | None:
        """As take, but nothing that is protected for other tenants, nor what they are promised."""

    def set_quota(self, tenant: int, blocks: int) -> None: ...
    def settle_quotas(self, outstanding: int) -> None:
        """Lets quotas that were raised rise as far as promises allow."""

    def promise(self, tenant: int, count: int) -> None: ...
    def quota_of(self, tenant: int) -> tuple[int, int, int, int]:
        """(quota in force, blocks owned, of them CACHED, of those protected)."""

    @property
    def num_idle(self) -> int:
        """Blocks that are protected beyond what their tenants are promised."""

    def hold(self, block: int) -> None: ...
    def release(self, table: Sequence[int]) -> None: ...
    def publish(
        self,
        block: int,
        parent: int,
        hash: tuple[int, int],
        tokens: Sequence[int],
        extras: bytes = b"",
        parent_hash: tuple[int, int] = (0, 0),
    ) -> int:
        """Makes the contents of a held block known; returns the serial of its entry."""

    def unpublish(self, block: int) -> None: ...
    def send_events_to(self, ring: KvEventRing, num_tokens: int) -> None:
        """Tells the ring from now on which hashes are stored and removed."""

    def stored_hashes(self) -> npt.NDArray[np.void]:
        """Every hash in the pool as a stored event, each once, parents before their children."""

    def eviction_order(self) -> list[int]: ...
    def check_invariants(self) -> None: ...

class SlabArena(metaclass=_PybindType):
    """Who owns which slab of one device's arena, and how many each model should have."""

    def __init__(self, arena_bytes: int, slab_bytes: int) -> None: ...
    @property
    def num_slabs(self) -> int: ...
    @property
    def num_free(self) -> int: ...
    def add_model(self, min: int, max: int, weight: float = 1.0, weights: int = 0) -> int: ...
    def owner(self, slab: int) -> int | None: ...
    def guaranteed(self, model: int) -> int:
        """The target of a model while all others want everything."""

    def targets(self, wanted: Sequence[int]) -> list[int]:
        """KV slabs that each model should have, given how many it wants."""

    def block_entries(self, slabs: Sequence[int], bytes_per_block: int) -> list[int]:
        """Block-table entries, in granules, of every block that fits the slabs."""

    def check_invariants(self) -> None: ...

class SlabExchange(metaclass=_PybindType):
    """Slabs that move between pools of blocks of one granule and one token. vacate is called with (model, slab)."""

    def __init__(
        self, num_slabs: int, blocks_per_slab: int, hysteresis_us: int, vacate: Callable[[int, int], None]
    ) -> None: ...
    def add_model(self, min: int, max: int, weight: float = 1.0) -> int: ...
    def pool(self, model: int) -> BlockPool: ...
    def set_needs(self, model: int, wanted: int, promised: int) -> None:
        """Blocks that the model's requests need in all, and that they were promised and have not taken."""

    def grow(self, model: int, blocks: int, now_us: int, room: int) -> tuple[bool, list[int]]:
        """Whether the model's pool grew, and which slabs must be zeroed, `room` at most."""

    def collect_drained(self) -> None: ...
    def set_awake(self, model: int, *, awake: bool) -> None: ...
    def lend(self, model: int) -> None: ...
    def owner(self, slab: int) -> int | None: ...
    def waits(self, model: int) -> bool: ...
    @property
    def num_reclaims(self) -> int: ...
    @property
    def num_vacates(self) -> int: ...
    def check_invariants(self) -> None: ...

class ModelEvent(enum.IntEnum):
    SLEEP = 0
    WAKE = 1
    REMOVE = 2
    QUIET = 3
    MOVED = 4

def next_state(state: ModelState, event: ModelEvent) -> ModelState: ...

class TenantLedger(metaclass=_PybindType):
    """Virtual token counters of tenants: who is next. 2^20 normalised units are one unit at weight 1."""

    def __init__(self, max_idle: int = 65536) -> None: ...
    def enter(self, tenant: int, weight: float, arrival: int, request_id: int) -> None: ...
    def set_head(self, tenant: int, arrival: int, request_id: int) -> None: ...
    def leave(self, tenant: int) -> None: ...
    def begin_work(self, tenant: int) -> None: ...
    def end_work(self, tenant: int) -> None: ...
    def charge(self, tenant: int, service: int) -> None: ...
    def set_weight(self, tenant: int, weight: float) -> None: ...
    def next(self) -> int | None: ...
    def order(self, limit: int) -> list[int]: ...
    def counter(self, tenant: int) -> int | None: ...
    def rebase(self) -> None: ...
    @property
    def virtual_time(self) -> int: ...
    @property
    def num_known(self) -> int: ...
    @property
    def lost_debt(self) -> int: ...
    def check_invariants(self) -> None: ...

class DeficitLedger(metaclass=_PybindType):
    """A tenant ledger whose order candidates bend: the highest rank goes first among tenants with a deficit.

    `quantum` is in units of counters: 2^20 are one unit of service at weight 1.
    """

    def __init__(self, quantum: int, max_idle: int = 65536) -> None: ...
    def enter(self, tenant: int, weight: float, rank: int, arrival: int, request_id: int) -> None: ...
    def offer(self, tenant: int, rank: int, arrival: int, request_id: int) -> None: ...
    def leave(self, tenant: int) -> None: ...
    def begin_work(self, tenant: int) -> None: ...
    def end_work(self, tenant: int) -> None: ...
    def charge(self, tenant: int, service: int) -> None: ...
    def next(self) -> int | None: ...
    def counter(self, tenant: int) -> int | None: ...
    def deficit(self, tenant: int) -> int: ...
    def rebase(self) -> None: ...
    @property
    def num_known(self) -> int: ...
    @property
    def num_refills(self) -> int: ...
    def check_invariants(self) -> None: ...

class ModelArbiter(metaclass=_PybindType):
    """Whose step is next on one device: deficit round robin in device microseconds."""

    def __init__(
        self,
        weights: Sequence[float],
        quantum_us: int,
        min_residency_us: int = 0,
        max_borrow_us: int = 0,
    ) -> None: ...
    def pass_turn(self, model: int) -> None: ...
    def set_pressed(self, model: int, *, pressed: bool) -> None: ...
    def set_backlogged(self, model: int, *, backlogged: bool) -> None: ...
    def next(self) -> int | None: ...
    def charge(self, model: int, device_us: int) -> None: ...
    def deficit(self, model: int) -> float: ...

class StepTimeModel(metaclass=_PybindType):
    """How long a step takes, learnt from how long earlier ones took.

    Work is (tokens, sequences, sum of decode contexts, sum over chunks of q * (context + q / 2)).
    """

    def __init__(self) -> None: ...
    def observe(self, work: tuple[int, int, int, float], micros: float) -> None: ...
    def estimate(self, work: tuple[int, int, int, float]) -> float:
        """Microseconds; 0 before the first observation."""

    @property
    def sigma(self) -> float: ...
    def ratio(self, share: float) -> float:
        """What steps took over what was expected of them: the ratio that this share of them lay below."""

    @property
    def is_trained(self) -> bool: ...
    @property
    def pieces(self) -> list[tuple[float, float, float, float, float]]:
        """Bound by memory, bound by arithmetic: microseconds per step, token, sequence, token of decode context,
        prefill pair."""

    def export_state(self) -> list[float]:
        """All that was learnt."""

    def import_state(self, state: Sequence[float]) -> None:
        """Goes on as the model that exported the state would; ValueError for what no model exports."""

class SloBudget(metaclass=_PybindType):
    """How many prefill tokens a step takes: what the tightest decode can afford."""

    def __init__(self, tile: int, max_tokens: int) -> None: ...
    def decide(
        self,
        model: StepTimeModel,
        start: int,
        bands: Sequence[tuple[int, int, int | None]],
        prefills: Sequence[tuple[int, int, int, int | None]],
        waiting: tuple[int, int, int, int | None] | None,
    ) -> tuple[int, float, int | None]:
        """(prefill tokens, microseconds, smallest resting band) of a step that starts at `start`.

        Bands are (decodes, sum of contexts, due), prefills (context, remaining, band, due).
        """

    def note(self, late: bool) -> None: ...
    @property
    def gain(self) -> float: ...
    @property
    def least_chunk(self) -> int: ...
    @staticmethod
    def is_feasible(model: StepTimeModel, start: int, prefill: tuple[int, int, int, int | None]) -> bool: ...

def largest_prefill(
    model: StepTimeModel,
    work: tuple[int, int, int, float],
    prefills: Sequence[tuple[int, int, int, int | None]],
    micros: float,
    tile: int,
    most: int,
) -> int:
    """The most prefill tokens that a step with `work` takes within `micros`."""

def largest_context(model: StepTimeModel, micros: float, most: int) -> int | None:
    """The longest context with which a decode alone takes at most `micros`."""

def next_token_due(due: int, emitted: int, itl: int, most_saved: int) -> int:
    """When the token after one that was due at `due` is due."""

def split_budget(prefills: Sequence[tuple[int, int]], budget: int, block_size: int, cap: int) -> list[int]:
    """Tokens of each running prefill, given as (start, remaining) in order of decision."""

def is_preempted_before(
    a: tuple[int, int, int, int, int, int], b: tuple[int, int, int, int, int, int]
) -> bool:
    """Keys are (band, counter, lost tokens, freed blocks, arrival, request id)."""

def aged_band(first_band: int, aging_us: int | None, waited_us: int) -> int:
    """The band a request stands in after waiting."""

class TierSource(enum.IntEnum):
    """Where a copy can be read; ARRIVING: on its way from the disk to the host."""

    NONE = 0
    HOST = 1
    DISK = 2
    ARRIVING = 3

class TransferEnd(enum.IntEnum):
    """What became of a transfer; CANCELLED: it never began."""

    DONE = 0
    FAILED = 1
    CANCELLED = 2

class TierSpace(metaclass=_PybindType):
    """Which granules of a tier no model has. Ranges are (first, count)."""

    def __init__(self, granules: int) -> None: ...
    def take(self, most: int) -> tuple[int, int]:
        """The first range that is large enough, cut to it, or else the largest; (0, 0) where there is none."""

    def give_back(self, range: tuple[int, int]) -> None: ...
    def free(self) -> list[tuple[int, int]]:
        """Ascending; ranges that touch are one."""

class TierCache(metaclass=_PybindType):
    """Copies of one model's blocks in host memory and on disk. Blocks and slots lie one after the other.

    rates are bytes per microsecond by MemoryOpKind; 0: it never arrives.
    """

    def __init__(
        self,
        *,
        entries: int,
        blocks: int,
        host: int,
        disk: int,
        granules: int,
        store_on_reuse: int,
        rates: Sequence[float],
    ) -> None: ...
    def begin_step(self, capacity: int) -> None: ...
    def ops(self) -> list[tuple[MemoryOpKind, int, int, int, int]]:
        """Rows (kind, id, from, to, granules) of this step."""

    def source(self, entry: int) -> TierSource: ...
    def keeps(self, entry: int) -> bool: ...
    def on_reuse(self, entry: int, block: int) -> None: ...
    def store(self, entry: int, block: int) -> bool: ...
    def pin(self, entry: int) -> tuple[int, int]: ...
    def unpin(self, pin: tuple[int, int]) -> None: ...
    def load(self, entry: int, block: int) -> int: ...
    def fetch(self, entry: int) -> int | None: ...
    def complete(self, id: int, end: TransferEnd, micros: int) -> bool | None:
        """Whether what it was to bring may be used; None for an id that is not pending."""

    def cancel_waiting(self, id: int) -> bool:
        """Takes an operation back that has been in no step."""

    def forget(self, entry: int) -> None: ...
    def spill_oldest(self) -> None: ...
    def take_lost(self) -> list[int]: ...
    def estimate(self, kind: MemoryOpKind, count: int) -> float:
        """Microseconds until that many blocks more have been transferred."""

    def forget_some(self, kind: MemoryOpKind) -> None: ...
    @property
    def num_free(self) -> tuple[int, int]: ...
    @property
    def num_pending(self) -> int: ...
    def check_invariants(self) -> None: ...

def prefill_micros(model: StepTimeModel, begin: int, end: int, chunk: int) -> float:
    """Microseconds that prefilling tokens [begin, end) takes in steps of `chunk` tokens."""

def best_load(
    model: StepTimeModel,
    start: int,
    num_blocks: int,
    length: int,
    block_size: int,
    chunk: int,
    load_micros: Callable[[int], float],
) -> int:
    """How many leading blocks to load, and not to compute."""
