"""Messages between clients (gateways) and an engine process: msgpack arrays over ZeroMQ.

A client's DEALER socket talks to the engine's ROUTER socket; each message is one frame.

    client                         engine
    Hello            ------->
                     <-------      Progress*   while models load, then
                     <-------      Welcome     or Failed, when loading ended with an error
    GenerateRequest  ------->
    Cancel           ------->
    SetTenant, Sleep, Wake, Load, Unload, Explain, Forbid, WatchKv
                     ------->
                     <-------      Reply       one per call, with its number
                     <-------      KvHeld      to who watches: what one model has cached, at first and after a gap
                     <-------      KvChanged   to who watches: what has become of blocks, at most once a step
                     <-------      Outputs     ONE per step and client, with all its rows
                     <-------      EngineStats about once a second, and when something changed
                     <-------      Models      what it serves has changed
                     <-------      Goodbye     the engine drains: it accepts nothing new
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

import msgspec
import zmq

from airi.errors import AiriError, error_from_code
from airi.forbidden import ForbiddenSet
from airi.outputs import ErrorInfo, Output, Task, error_info
from airi.sampling_params import SamplingParams

__all__ = [
    "LONGEST_SILENCE_S",
    "MAX_REQUEST_ID",
    "NOBODY",
    "PROTOCOL",
    "Cancel",
    "ClientMessage",
    "ControlMessage",
    "EngineMessage",
    "EngineStats",
    "Explain",
    "Failed",
    "Forbid",
    "ForbidFor",
    "GenerateRequest",
    "Goodbye",
    "Hello",
    "KvChanged",
    "KvHeld",
    "Load",
    "ModelInfo",
    "ModelStats",
    "Models",
    "Outputs",
    "Progress",
    "Reply",
    "SetTenant",
    "Sleep",
    "Unload",
    "Wake",
    "WatchKv",
    "Welcome",
    "decode_client_message",
    "decode_engine_message",
    "encode",
    "error_info",
    "error_of",
    "next_request_id",
    "set_heartbeat",
]

PROTOCOL = 9
"""Both sides must speak the same number; the engine refuses a Hello with another one."""

MAX_REQUEST_ID = 2**40 - 1
"""Ids of one client; the engine puts the client's own number above these bits."""

NOBODY = 0
"""The number of calls whose reply nobody waits for."""

# I/O threads answer heartbeats also while a step runs or a loop is busy. A host that is gone, or a process that is
# stopped, counts as dead after the second of them; a process that ends is noticed at once, by its closed connection.
_HEARTBEAT_MS = 5_000
LONGEST_SILENCE_S = 30.0
"""Seconds without a word, of its host or of what it was asked, after which an engine is not waited for."""

_request_ids = itertools.count(1)


def next_request_id() -> int:
    """A request id that this process has not used yet."""
    return next(_request_ids)


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """A client introduces itself; answered by Progress while models load, then by Welcome or Failed."""

    protocol: int = PROTOCOL


class GenerateRequest(msgspec.Struct, array_like=True, tag="generate", kw_only=True):
    """One completion of one prompt. `n` > 1 is the caller's: one request per choice, see `for_choice`."""

    model: str
    """Name or alias of a loaded model."""
    tokens: bytes
    """Prompt ids as native int32; make them with `pack_tokens`."""
    params: SamplingParams
    request_id: int = msgspec.field(default_factory=next_request_id)
    """Unique among the requests that this client has running, in [0, MAX_REQUEST_ID]."""
    tenant: int = 0
    priority: int = 0
    """Higher is served first."""
    timeout_us: int | None = None
    """Ends the request with reason "deadline" this long after the engine received it."""
    cache_salt: bytes | None = None
    """Prefix blocks are shared only with requests of the same salt."""
    cache_salt_from: int = 0
    """The token of the prompt from which on the salt holds."""
    metered: bool = False
    """Has each step that it was part of give an output, without tokens too, that says what device time it took."""
    forbidden: bytes | None = None
    """The digest of a set of forbidden texts that `Forbid` has told of: no text may have a match."""
    shown_tokens: tuple[int, ...] = ()
    """Special tokens that are text all the same, where there is such a set."""
    prompt_logprobs_from: int = 0
    """The token of the prompt from which on log-probabilities of the prompt are taken, where they are asked for; those
    before it are None."""

    pools: bool = False
    """Asks a model that reads texts whole for what it gives for this one; `params` mean nothing then."""

    @staticmethod
    def pack_tokens(tokens: Sequence[int]) -> bytes:
        """Token ids as the bytes that `tokens` holds. A value outside int32 raises OverflowError."""
        return array("i", tokens).tobytes()

    @property
    def num_tokens(self) -> int:
        """Tokens in the prompt."""
        return len(self.tokens) // 4


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Stop these requests; each that still runs ends with an output of reason "cancelled"."""

    request_ids: list[int]


class SetTenant(msgspec.Struct, frozen=True, array_like=True, tag="tenant"):
    """Gives a tenant its share against the others that have requests waiting; 1 unless set."""

    call: int
    """The number that the reply will bear; of this client, in [0, MAX_REQUEST_ID]."""
    tenant: int
    weight: float
    kv_quota: float | None = None
    """Share of each model's KV memory that it keeps; None leaves that as it is."""


class Sleep(msgspec.Struct, frozen=True, array_like=True, tag="sleep"):
    """Lend a model's memory to the others; the reply comes when it sleeps."""

    call: int
    model: str


class Wake(msgspec.Struct, frozen=True, array_like=True, tag="wake"):
    """Bring a sleeping model back; the reply comes when its requests may run."""

    call: int
    model: str


class Load(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """Serve one more model, where memory moves between those that run; the reply comes when its requests may run.

    Steps of the others go on meanwhile; clients are told of the model by `Models`, before the reply.
    """

    call: int
    options: bytes
    """`airi.engine.ModelOptions` as JSON."""


class Unload(msgspec.Struct, frozen=True, array_like=True, tag="unload"):
    """Take no more requests of a model; the reply comes when it has gone."""

    call: int
    model: str
    drains: bool = True
    """Whether the requests it has may end; else they are cancelled."""


class Explain(msgspec.Struct, frozen=True, array_like=True, tag="explain"):
    """Say what was decided about one of this client's requests."""

    call: int
    request_id: int


class ForbidFor(msgspec.Struct, frozen=True, array_like=True):
    """A set of forbidden texts for some models."""

    forbidden: ForbiddenSet
    models: tuple[str, ...]


class Forbid(msgspec.Struct, frozen=True, array_like=True, tag="forbid"):
    """From now on this client's requests may name these sets, and no others; the reply comes when their masks are made.

    Requests that name them may follow at once.
    """

    call: int
    sets: tuple[ForbidFor, ...]


class WatchKv(msgspec.Struct, frozen=True, array_like=True, tag="watch_kv"):
    """From now on tell this client what KV blocks there are: a `KvHeld` for each model, then `KvChanged`."""

    call: int


ControlMessage = SetTenant | Sleep | Wake | Load | Unload | Explain | Forbid | WatchKv
"""Calls: each is answered by one Reply. All have their number first."""


class Reply(msgspec.Struct, frozen=True, array_like=True, tag="reply"):
    """How a call ended."""

    call: int
    error: ErrorInfo | None = None
    lines: list[str] = []
    """What `Explain` asked for, oldest first."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model, with what the text side needs to serve it."""

    name: str
    aliases: tuple[str, ...] = ()
    path: str
    """Resolved local folder: config.json, tokenizer.json, chat template, generation_config.json."""
    architecture: str = ""
    dtype: str = ""
    max_model_len: int
    """Prompt and completion together, in tokens."""
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    block_size: int = 16
    num_kv_blocks: int = 0
    max_num_seqs: int = 0
    num_parameters: int = 0
    index: int = 0
    """Its number in the engine's KV events."""
    num_cacheable_blocks: int = 0
    """KV blocks that can be there at once, with those beside the device."""
    max_batch_tokens: int = 2048
    task: Task = "generate"
    labels: tuple[str, ...] = ()
    """Of a classifier, by output."""
    is_multi_label: bool = False
    """Each label of a classifier holds or does not, whatever the others do."""
    vector_size: int = 0
    """Numbers that a text gives; 0 where tokens are generated."""
    digest: str = ""
    """Of a model that gives vectors: SHA-256 of its weights and of the shape of its network, hexadecimal."""
    pooling: str = ""
    """How it makes one vector of all tokens'."""
    normalizes: bool = False
    """Whether vectors have length 1."""
    matryoshka_dimensions: tuple[int, ...] | None = None
    """Sizes that vectors may be cut to; empty: any; None: none."""


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """How far loading is."""

    model: str
    stage: str
    """What is done now, in words: "weights", "warm-up", ..."""
    done: float
    """Of `total`, in the stage's own unit (bytes for weights)."""
    total: float


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The engine serves."""

    engine_id: str
    """Random per process: another id means another process behind the same endpoint."""
    pid: int
    models: list[ModelInfo]
    device: str = "cpu"
    protocol: int = PROTOCOL


class Models(msgspec.Struct, frozen=True, array_like=True, tag="models"):
    """What the engine serves from now on."""

    models: list[ModelInfo]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """Loading ended with an error; the process exits."""

    error: ErrorInfo


class Outputs(msgspec.Struct, array_like=True, tag="outputs"):
    """All that one step gave to this client's requests.

    Rows that only got one more token travel as two columns; everything else (first tokens, ends,
    log-probabilities, errors, rows of metered requests) as `Output`s.
    """

    request_ids: bytes
    """Native int64, one per plain row."""
    tokens: bytes
    """Native int32, one per plain row."""
    others: list[Output] = []


class TierStats(msgspec.Struct, frozen=True, kw_only=True):
    """Copies of one model's KV blocks beside the device, and transfers that went well since the engine started."""

    host_blocks: int = 0
    disk_blocks: int = 0
    stores: int = 0
    loads: int = 0
    spills: int = 0
    fetches: int = 0
    failures: int = 0
    """Transfers that did not go well: what they were to bring was computed."""
    dropped_stores: int = 0
    """Blocks that left the device without a copy, for want of room."""
    swaps: int = 0
    """Preemptions of which the host kept the blocks."""


class ModelStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one model; those that only grow are totals since the engine started."""

    name: str
    running: int = 0
    waiting: int = 0
    kv_blocks_total: int = 0
    kv_blocks_active: int = 0
    """Blocks that running requests hold; cached ones can be taken at any time and count as unused."""
    kv_blocks_cached: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    device_us: int = 0
    """Time that this model's steps took."""
    first_tokens_on_time: int = 0
    first_tokens_late: int = 0
    next_tokens_on_time: int = 0
    next_tokens_late: int = 0
    """Of requests with a target; next tokens are those after a first one."""
    requests_on_time: int = 0
    requests_late: int = 0
    """That ran to their end, with no token late or with some."""
    best_effort_requests: int = 0
    """That could not have their first token in time any more and let others pass."""
    state: str = "awake"
    """Where the model stands: "awake", "asleep", or on its way, as `_core.ModelState` names it."""
    tiers: TierStats | None = None
    """Where the engine has memory for copies beside the device."""
    step_time: list[tuple[float, float, float, float, float]] | None = None
    """What has been learnt of how long steps take, as `StepTimeModel.pieces`; None: nothing yet."""


class EngineStats(msgspec.Struct, frozen=True, array_like=True, tag="stats"):
    """A snapshot of the engine's counters."""

    models: list[ModelStats]


class Goodbye(msgspec.Struct, frozen=True, array_like=True, tag="goodbye"):
    """The engine drains and will exit: running requests go on, new ones are not accepted."""

    reason: str = "terminated"


class KvHeld(msgspec.Struct, frozen=True, array_like=True, tag="kv_held"):
    """All blocks that one model has now, and how prompts are hashed for it."""

    model: str
    hash_key: bytes
    hash_seed: bytes
    block_size: int
    is_isolated: bool
    """Whether tenants share no blocks but those of public prefixes."""
    public_prefixes: tuple[tuple[int, ...], ...]
    stored: bytes
    """As `KvChanged.events`: one per block and tier."""


class KvChanged(msgspec.Struct, frozen=True, array_like=True, tag="kv_changed"):
    """What has become of blocks since the last message, of all models, in order."""

    events: bytes
    """Native records as `_core.Runtime.read_kv_events` has them."""


ClientMessage = Hello | GenerateRequest | Cancel | ControlMessage
EngineMessage = (
    Progress | Welcome | Models | Failed | Outputs | EngineStats | Goodbye | Reply | KvHeld | KvChanged
)

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_engine_decoder: msgspec.msgpack.Decoder[EngineMessage] = msgspec.msgpack.Decoder(EngineMessage)


def encode(message: ClientMessage | EngineMessage) -> bytes:
    """One message as one frame."""
    return _encoder.encode(message)


def decode_client_message(frame: bytes | memoryview) -> ClientMessage:
    """What a client sent. Raises msgspec.ValidationError or DecodeError for anything else."""
    return _client_decoder.decode(frame)


def decode_engine_message(frame: bytes | memoryview) -> EngineMessage:
    """What an engine sent. Raises msgspec.ValidationError or DecodeError for anything else."""
    return _engine_decoder.decode(frame)


def set_heartbeat(socket: zmq.Socket[bytes]) -> None:
    """Has either end notice that the other has gone without a word; before the socket binds or connects."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(LONGEST_SILENCE_S * 1000))


def error_of(info: ErrorInfo) -> AiriError:
    """The exception that an ErrorInfo stands for."""
    return error_from_code(info.code, info.message, info.field)
