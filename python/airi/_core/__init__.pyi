"""AIRI's C++ core: the scheduling runtime and the CPU kernels. Times are integer microseconds."""

import enum
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from airi._core import cpu as cpu
from airi._core import guard as guard
from airi._core import parts as parts
from airi._core import route as route
from airi._core import sim as sim

# The metaclass of every class that pybind11 makes; stubtest wants one to be named.
class _PybindType(type): ...
class InternalError(RuntimeError): ...

ROW_SAMPLE: Final[int]
ROW_FIRST: Final[int]
ROW_PENDING: Final[int]
GRANULE_BYTES: Final[int]

class Admit(enum.IntEnum):
    ACCEPTED = 0
    QUEUE_FULL = 1
    TOO_LONG = 2
    NEVER_FITS = 3
    DUPLICATE_ID = 4
    MODEL_GONE = 5

class ModelState(enum.IntEnum):
    """Where a model stands: in MOVING_OUT and MOVING_IN its weights are to be copied, then confirm_moved()."""

    AWAKE = 0
    DRAINING = 1
    MOVING_OUT = 2
    ASLEEP = 3
    RECLAIMING = 4
    MOVING_IN = 5
    REMOVING = 6
    REMOVED = 7

class FinishReason(enum.IntEnum):
    STOP = 0
    LENGTH = 1
    CANCELLED = 2
    DEADLINE = 3
    FAILED = 4
    NAN = 5
    NEVER_FITS = 6

class RowStatus(enum.IntEnum):
    OK = 0
    NAN = 1
    FAILED = 2

class MemoryOpKind(enum.IntEnum):
    """What a runner does to memory before a step's batch.

    ZERO a range of the device arena; STORE device to host; LOAD host to device; SPILL host to disk; FETCH disk to
    host.
    """

    ZERO = 0
    STORE = 1
    LOAD = 2
    SPILL = 3
    FETCH = 4

class Admission(enum.IntEnum):
    NO_EVICT = 0
    MAX_UTIL = 1

class Decision(enum.IntEnum):
    """Column decision of decision records. Numbers never change and are never used anew.

    What the columns a and b hold, for each of them:

    SUBMITTED: prompt tokens, most tokens to generate. QUEUED_TURN: id of the request that stands first, how
    many wait. QUEUED_SLOTS: how many run. QUEUED_BLOCKS and QUEUED_QUOTA: blocks it needs, blocks it could
    have. QUEUED_BUDGET: most tokens in a step. QUEUED_BARRED: its band. QUEUED_PREFIX: id of the request that
    computes its prefix, most steps it is held for. QUEUED_BEST_EFFORT: microseconds for which it lets others
    pass. ADMITTED: tokens hit, blocks promised to it. CHUNKED: tokens, tokens left. PREEMPTED_*: id of the
    request in whose favour, tokens computed. FINISHED_*: tokens generated, prompt tokens hit.
    REFUSED_QUEUE_FULL: how many may wait. REFUSED_TOO_LONG: tokens it needs, most tokens of a request.
    REFUSED_NEVER_FITS: blocks it needs, blocks there are.
    """

    SUBMITTED = 1
    QUEUED_TURN = 10
    QUEUED_SLOTS = 11
    QUEUED_BLOCKS = 12
    QUEUED_BUDGET = 13
    QUEUED_BARRED = 14
    QUEUED_PREFIX = 15
    QUEUED_QUOTA = 16
    QUEUED_BEST_EFFORT = 17
    ADMITTED = 20
    CHUNKED = 21
    PREEMPTED_MEMORY = 30
    PREEMPTED_URGENT = 31
    PREEMPTED_GAP = 32
    PREEMPTED_SLAB = 33
    PREEMPTED_SLEEP = 34
    FINISHED_STOP = 40
    FINISHED_LENGTH = 41
    FINISHED_CANCELLED = 42
    FINISHED_DEADLINE = 43
    FINISHED_FAILED = 44
    FINISHED_NAN = 45
    FINISHED_NEVER_FITS = 46
    REFUSED_QUEUE_FULL = 60
    REFUSED_TOO_LONG = 61
    REFUSED_NEVER_FITS = 62
    REFUSED_DUPLICATE_ID = 63
    REFUSED_MODEL_GONE = 64

class KvEventKind(enum.IntEnum):
    """Column kind of KV events. Numbers never change."""

    STORED = 1
    REMOVED = 2

class KvTier(enum.IntEnum):
    """Column tier of KV events. Numbers never change."""

    DEVICE = 0
    HOST = 1
    DISK = 2

class ModelConfig(metaclass=_PybindType):
    """One model of a device. Slabs: num_slabs, or share of the arena, or an equal part of the rest; or, with
    min_slabs or max_slabs, as many as its requests need, slab_weight saying how much beside other models'.

    weight_slabs are adjacent slabs that hold its weights.

    bytes_per_block is a multiple of GRANULE_BYTES; watermark is the share of blocks that MAX_UTIL
    leaves free at admissions; max_prefill_chunk bounds one request's tokens per step; targets are, by
    band, (microseconds to the first token, microseconds between tokens), None where nothing is promised;
    itl_credit is how many of the latter a stream may save by early tokens, for a late one, at most 1;
    whole_prompts: a prompt is computed in one step or not begun; it is one block, which nothing shares.
    """

    def __init__(
        self,
        *,
        block_size: int,
        bytes_per_block: int,
        max_model_len: int,
        max_num_seqs: int,
        max_batch_tokens: int,
        num_slabs: int | None = None,
        share: float | None = None,
        device_weight: float = 1.0,
        hash_seed: bytes = b"",
        admission: Admission = ...,
        watermark: float = 0.01,
        enable_prefix_caching: bool = True,
        max_prefill_chunk: int | None = None,
        min_slabs: int | None = None,
        max_slabs: int | None = None,
        slab_weight: float = 1.0,
        weight_slabs: int = 0,
        targets: Sequence[tuple[int | None, int | None]] = ...,
        itl_credit: float = 0.0,
        whole_prompts: bool = False,
    ) -> None: ...
    @property
    def max_deltas(self) -> int:
        """How many rows StepBuffers.deltas must have at least."""

class RuntimeConfig(metaclass=_PybindType):
    """What all models of a device share. aging_us None: bands are strict.

    host_bytes and disk_bytes are what copies of blocks may take beside the device; the bytes per microsecond are
    what transfers are expected to reach before any is measured, 0: nothing is ever loaded.
    """

    def __init__(
        self,
        *,
        arena_bytes: int,
        slab_bytes: int,
        hash_key: bytes,
        max_queued: int = 4096,
        num_bands: int = 1,
        aging_us: int | None = None,
        w_prompt: int = 1,
        w_decode: int = 2,
        w_hit: int = 0,
        bypass_tokens: int = 0,
        max_preemptions: int = 3,
        quantum_us: int = 10000,
        min_residency_us: int = 0,
        max_borrow_us: int = 0,
        fairness_gap_tokens: int | None = None,
        host_bytes: int = 0,
        disk_bytes: int = 0,
        store_on_reuse: int = 2,
        load_timeout_us: int = 1000000,
        host_bytes_per_us: float = 8000.0,
        disk_bytes_per_us: float = 1000.0,
        steps_ahead: int = 0,
        decision_records: int = 0,
        kv_event_records: int = 0,
        locality_quantum_tokens: int | None = None,
        slab_hysteresis_us: int = 1000000,
        dedupe_steps: int = 0,
    ) -> None: ...

class StepBuffers(metaclass=_PybindType):
    """One set of arrays that steps are written into: R rows, T tokens, D deltas (slot, column, entry).

    ops holds at most M memory operations (MemoryOpKind, id, from, to, granules), which tiers and models whose
    slabs move need. They begin in order before the batch: a STORE or ZERO is done before it, what has an id is
    reported by complete_transfers.
    """

    def __init__(
        self,
        *,
        request_ids: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int32],
        query_start: npt.NDArray[np.int32],
        seq_lens: npt.NDArray[np.int32],
        row_flags: npt.NDArray[np.uint8],
        draw_index: npt.NDArray[np.int32],
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        deltas: npt.NDArray[np.int32],
        ops: npt.NDArray[np.int64] | None = None,
    ) -> None: ...
    @property
    def request_ids(self) -> npt.NDArray[np.int64]: ...
    @property
    def slots(self) -> npt.NDArray[np.int32]: ...
    @property
    def query_start(self) -> npt.NDArray[np.int32]: ...
    @property
    def seq_lens(self) -> npt.NDArray[np.int32]: ...
    @property
    def row_flags(self) -> npt.NDArray[np.uint8]: ...
    @property
    def draw_index(self) -> npt.NDArray[np.int32]: ...
    @property
    def tokens(self) -> npt.NDArray[np.int32]: ...
    @property
    def positions(self) -> npt.NDArray[np.int32]: ...
    @property
    def deltas(self) -> npt.NDArray[np.int32]: ...
    @property
    def ops(self) -> npt.NDArray[np.int64]: ...

class StepInfo(metaclass=_PybindType):
    """What step() planned. The arrays of buffer set `buffer` hold it until commit.

    Rows [0, num_decodes) bring one token each; the others are prefill chunks.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: only the core makes these."""

    @property
    def step_id(self) -> int: ...
    @property
    def model(self) -> int: ...
    @property
    def buffer(self) -> int: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_deltas(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def num_decodes(self) -> int: ...
    @property
    def num_prefill_tokens(self) -> int: ...
    @property
    def num_ops(self) -> int:
        """Memory operations to execute, in order, before the batch."""

class TierStats(metaclass=_PybindType):
    """Counters of the copies that one model has beside the device."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: only the core makes these."""

    @property
    def host_blocks(self) -> int: ...
    @property
    def disk_blocks(self) -> int: ...
    @property
    def stores(self) -> int: ...
    @property
    def loads(self) -> int: ...
    @property
    def spills(self) -> int: ...
    @property
    def fetches(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def dropped_stores(self) -> int: ...

class ModelStats(metaclass=_PybindType):
    """Counters of one model. query_tokens and hit_tokens count prompts at their first dispatch."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: only the core makes these."""

    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...
    @property
    def cached_blocks(self) -> int: ...
    @property
    def active_blocks(self) -> int: ...
    @property
    def query_tokens(self) -> int: ...
    @property
    def hit_tokens(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def dedupe_holds(self) -> int: ...
    @property
    def evictions(self) -> int: ...
    @property
    def swaps(self) -> int:
        """Preemptions of which the host keeps the blocks."""

    @property
    def tiers(self) -> TierStats: ...
    @property
    def first_tokens_on_time(self) -> int: ...
    @property
    def first_tokens_late(self) -> int: ...
    @property
    def next_tokens_on_time(self) -> int: ...
    @property
    def next_tokens_late(self) -> int: ...
    @property
    def requests_on_time(self) -> int:
        """Requests that ran to their end with every token on time."""

    @property
    def requests_late(self) -> int: ...
    @property
    def best_effort(self) -> int:
        """Requests found not to make their first token even alone, and put behind all others for a while."""

    @property
    def rests(self) -> int:
        """Decodes that sat out a step."""

class Runtime(metaclass=_PybindType):
    """The scheduling core of one device: several models over one arena.

    submit, cancel, set_tenant, complete_transfers, has_work, read_decisions and read_kv_events may be called
    from any thread; everything else from one owner thread. Bad arguments raise ValueError or TypeError and
    change nothing.
    """

    def __init__(
        self, config: RuntimeConfig, models: Sequence[ModelConfig], buffers: Sequence[StepBuffers]
    ) -> None: ...
    def set_tenant(self, tenant: int, weight: float) -> None: ...
    def set_kv_quota(self, tenant: int, model: int, blocks: int) -> None:
        """Keeps blocks of a model's KV memory, in use or cached, for a tenant whatever others need; 0: none."""

    def capacity(self, model: int) -> int:
        """Blocks that requests of a model can count on; any thread may ask."""

    def submit(
        self,
        *,
        request_id: int,
        model: int,
        tenant: int = 0,
        band: int = 0,
        tokens: npt.NDArray[np.int32],
        max_new_tokens: int | None,
        min_new_tokens: int = 0,
        stop_ids: npt.NDArray[np.int32] | None = None,
        arrival_us: int,
        deadline_us: int | None = None,
        salts: Sequence[tuple[int, bytes]] = ...,
        compute_all: bool = False,
    ) -> Admit:
        """Queues a request. max_new_tokens None: what still fits. Smaller bands are more urgent.

        A salt (offset, bytes) keeps the KV from token `offset` on to requests with the same salt
        there. stop_ids count from min_new_tokens on. compute_all takes no prefix hit.
        """

    def cancel(self, request_id: int) -> bool:
        """Ends a request at the next step(). False where no live request has this id."""

    def step(self, now_us: int) -> StepInfo | None:
        """Plans the next step into a buffer set, or None where no model has work that can go on now.

        A step may bring memory operations and deltas without a row.
        """

    def commit(
        self,
        step_id: int,
        tokens: npt.NDArray[np.int32],
        counts: npt.NDArray[np.int32],
        status: npt.NDArray[np.uint8],
        device_us: int,
    ) -> None:
        """Applies a step: tokens [sum of counts], counts [rows] (1 for rows that sample), status [rows]."""

    def add_model(self, model: ModelConfig) -> int:
        """Starts a model whose slabs move; returns its index. See state() for when to load its weights."""

    def remove_model(self, model: int, *, drains: bool = False) -> None:
        """Ends the model once its requests have ended, or with drains False, or asleep, cancels them."""

    def sleep(self, model: int) -> None:
        """Takes the model's requests off the device; they wait. See state() for when to save its weights."""

    def wake(self, model: int) -> None:
        """Takes its weights' slabs back. See state() for when to load them."""

    def confirm_moved(self, model: int) -> None:
        """The weights were copied out of, or into, the model's slabs."""

    def state(self, model: int) -> ModelState: ...
    def weights_at(self, model: int) -> int | None:
        """The first of the adjacent slabs that are the home of the model's weights."""

    def replace_buffers(self, buffers: Sequence[StepBuffers]) -> None:
        """Sets to write into from the next step on; no step may be uncommitted."""

    def complete_transfers(
        self, ids: npt.NDArray[np.int64], ok: npt.NDArray[np.bool_], micros: npt.NDArray[np.int64]
    ) -> None:
        """Tells how memory operations ended, and what each took by itself. Unknown ids mean nothing."""

    def observe_step(self, model: int, work: tuple[int, int, int, float], micros: float) -> None:
        """Tells how long a step took that was run elsewhere; work as parts.StepTimeModel takes it."""

    def step_time(self, model: int) -> parts.StepTimeModel:
        """How long steps of a model take, as learnt from commits. To be changed between steps only."""

    def drain_events(self) -> npt.NDArray[np.void]:
        """What ended since the last call, oldest first: a structured array with the fields

        request_id, reason (FinishReason), model, num_prompt_tokens, num_cached_tokens,
        num_generated_tokens.
        """

    def read_decisions(self, cursor: int, limit: int = 4096) -> tuple[npt.NDArray[np.void], int, int]:
        """(records from the cursor on, cursor to read on from, how many were overwritten unread).

        Starts at cursor 0. Fields: request_id, tenant, at_us, model, decision (Decision), a, b. Empty unless
        RuntimeConfig.decision_records is set.
        """

    def read_kv_events(self, cursor: int, limit: int = 4096) -> tuple[npt.NDArray[np.void], int, int]:
        """As read_decisions, of KV blocks. Fields: hash and parent (pairs lo, hi; a removed one names
        no parent), kind, tier (KvTier: device, host or disk), model, num_tokens.

        A hash is stored in a tier once it can be read there, and removed when it no more can; a block that
        left the device may be in the others yet. Who applies all events from cursor 0 has the hashes of each
        tier. Empty unless
        RuntimeConfig.kv_event_records is set.
        """

    def kv_snapshot(self, model: int) -> tuple[npt.NDArray[np.void], int]:
        """(a stored event per tier for every hash that can be read there, parents first; cursor of the next
        event)."""

    def has_work(self) -> bool:
        """True while any accepted request has not ended."""

    def stats(self) -> list[ModelStats]: ...
    def tenant_counter(self, model: int, band: int, tenant: int) -> int | None:
        """Service per weight that the ledger counts for a tenant; 2^20 is one unit at weight 1."""

    def check_invariants(self) -> None: ...
