"""What became of each request and why, as it is kept and told. Never holds a prompt, an answer or a key."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

import msgspec

__all__ = [
    "MOST_BYTES",
    "MOST_REQUESTS",
    "Amounts",
    "CandidateRecord",
    "ChoiceRecord",
    "ContentRecord",
    "DecisionRecord",
    "FailedRule",
    "Failure",
    "LimitsRecord",
    "ModelRecord",
    "Recent",
    "ReleaseRecord",
    "ReplicaRecord",
    "RequestRecord",
    "RouteRecord",
    "UpstreamAttempt",
    "UpstreamRecord",
]

MOST_REQUESTS: Final = 10_000
MOST_BYTES: Final = 16 << 20
_MOST_LISTED: Final = 20
_SHARE: Final = 4
"""A tenant that has more than one part in so many of what may be kept makes way before all others."""
_OVERHEAD: Final = 384
"""Bytes that Python takes for one record beside what it holds."""


class _Part(msgspec.Struct, omit_defaults=True):
    """What is at its default is left out."""


class Failure(_Part, kw_only=True):
    """Why something failed. The message is left out where it may quote the request."""

    status: int
    """As HTTP has it; 499: the client hung up."""
    code: str = ""
    field: str = ""
    message: str = ""


class FailedRule(_Part, kw_only=True):
    """A condition of a route that could not be evaluated, which counts as false."""

    rule: int
    error: str


class RouteRecord(_Part, kw_only=True):
    """Which model a route gave a request to."""

    name: str
    rule: int | None = None
    """The first rule that holds, by its place; left out: none did, its default was taken."""
    models: list[str]
    """Those that are asked in turn while they cannot serve."""
    kept: bool = False
    """The first of them is what the session had before; no other reason counts then."""
    classified: str = ""
    """What came of asking the route's classifier: ok, or why there is no label."""
    label: str = ""
    """That the classifier gave."""
    failed: list[FailedRule] = []


class DecisionRecord(_Part, kw_only=True):
    """What Cedar decided."""

    allowed: bool
    policies: tuple[str, ...] = ()
    """Ids of those that permitted, or forbade; none: no policy permits."""
    errors: tuple[str, ...] = ()
    """Ids of those that could not be evaluated."""


class Amounts(_Part, kw_only=True):
    """What limits count."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """In the currency of prices."""


class LimitsRecord(_Part, kw_only=True):
    """What a call held of its limits, and what it was charged."""

    scopes: list[str]
    """Whose limits."""
    reserved: Amounts
    settled: Amounts | None = None
    """Left out while it runs."""


class ContentRecord(_Part, kw_only=True):
    """How often a content rule found something."""

    side: str
    """input or output."""
    rule: str
    action: str
    count: int


class ReleaseRecord(_Part, kw_only=True):
    """The release that a call was given."""

    line: str
    release: str
    by: str
    """x-airi-release, baggage, path, session or request; or why it is not the one that was drawn."""
    rollout: str = ""
    """Id of the line's rollout, where one was under way."""
    role: str = ""
    """stable or candidate."""
    step: int = 0
    """Of the rollout, from 1 on."""
    steps: int = 0
    weight: float = 0.0
    """Percent of requests that the candidate had."""


class CandidateRecord(_Part, kw_only=True):
    """A replica that a request could be sent to."""

    replica: str
    ttft_ms: float
    """Predicted time to the first token."""
    delay_ms: float = 0.0
    """Predicted delay for others."""
    cached_tokens: int = 0
    """Of the prompt, found in what the replica has cached."""
    requests: int = 0
    """Outstanding there."""
    tokens: int = 0
    """Of outstanding prompts."""
    overloaded: bool = False
    """Left out for it."""


class ReplicaRecord(_Part, kw_only=True):
    """Where a request was sent: to the candidate with the least time to the first token and delay for others."""

    replica: str
    took_us: float
    """Time to decide."""
    lost: list[str] = []
    """Replicas that went before they had answered it."""
    candidates: list[CandidateRecord] = []
    """The best ones first."""


class ChoiceRecord(_Part, kw_only=True):
    """One answer of a model of an engine."""

    number: int
    """The request's at the engine."""
    finish_reason: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    replica: ReplicaRecord | None = None
    engine: list[str] = []
    """What the engine decided, a line each; it keeps its last decisions only."""


class UpstreamAttempt(_Part, kw_only=True):
    """One time that another server was asked."""

    outcome: str
    problem: str = ""
    waited_ms: float = 0.0
    """Before the next one."""


class UpstreamRecord(_Part, kw_only=True):
    """How another server answered."""

    attempts: list[UpstreamAttempt] = []
    circuit: str = ""
    """Of the circuit breaker, before the call."""


class ModelRecord(_Part, kw_only=True):
    """One model that was asked: for the request, in place of one that could not serve, or within another call."""

    kind: str = ""
    """What it was decided on as: chat, completion, classify, judge, shadow; left out: it was not."""
    asked: str
    model: str = ""
    """Left out: none was found, or it was not allowed."""
    version: str = ""
    decision: DecisionRecord | None = None
    priority: int = 0
    priority_class: str = ""
    release: ReleaseRecord | None = None
    limits: LimitsRecord | None = None
    content: list[ContentRecord] = []
    upstream: UpstreamRecord | None = None
    choices: list[ChoiceRecord] = []
    more_choices: int = 0
    """That are not listed."""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    device_ms: float = 0.0
    began_ms: float = 0.0
    """All moments are milliseconds since the request came."""
    sent_ms: float | None = None
    """When it went to its engine or server."""
    first_token_ms: float | None = None
    ended_ms: float | None = None
    outcome: str = ""
    """Of a shadow: scored, unscored, dropped or denied."""
    error: Failure | None = None


class RequestRecord(_Part, kw_only=True):
    """A request, what was done for it and why."""

    id: str
    """The x-request-id of the answer, which may be the client's."""
    own_id: str = ""
    """The gateway's own, which no other request has: the x-airi-request-id of the answer, where that is another."""
    answer_id: str = ""
    at: str = ""
    """When it came; empty while nobody reads the record."""
    tenant: str
    key_id: str = ""
    dialect: str
    path: str
    asked: str = ""
    """The model's name, or the route's."""
    stream: bool = False
    running: bool = False
    status: int = 0
    took_ms: float = 0.0
    """Until now, while it runs."""
    error: Failure | None = None
    route: RouteRecord | None = None
    calls: list[ModelRecord] = []
    """One, or one for each model that a route had asked in turn."""
    inner: list[ModelRecord] = []
    more_inner: int = 0
    """That are not listed."""
    same_id: list[str] = []
    """The gateway's own ids of other requests with the same x-request-id, the latest first."""
    num_same_id: int = 0
    """How many there are, also of those that are not listed."""


class Live(Protocol):
    """A request whose record still grows."""

    @property
    def id(self) -> str: ...

    @property
    def own_id(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    @property
    def answer_id(self) -> str: ...

    @property
    def at(self) -> float:
        """When it came, in seconds since 1970."""
        ...

    def told(self) -> RequestRecord:
        """What there is to tell now."""
        ...


T = TypeVar("T", bound=Live)


class _Kept(msgspec.Struct, frozen=True, gc=False):
    id: str
    own_id: str
    answer_id: str
    tenant: str
    at: float
    data: bytes


class Recent(Generic[T]):
    """The requests that run, and the last that have ended: at most so many, of at most so many bytes together.

    Records that have ended are kept as bytes: their size is known, and the garbage collector does not look at them.
    *Thread safety*: none; event loop only. *Invariant*: neither bound is exceeded, whatever requests bring along, and
    nothing makes way for the requests of a tenant that has more than a quarter, but that tenant's own.
    """

    def __init__(self, *, most: int = MOST_REQUESTS, most_bytes: int = MOST_BYTES) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._count = 0
        self._of: dict[str, deque[int]] = {}
        """By tenant, what is kept of it, by its keys in `_kept`."""
        self._bytes: Counter[str] = Counter()
        self._heavy: set[str] = set()
        """Tenants that have more than a quarter."""
        self._running: set[T] = set()
        self._encode: Callable[[RequestRecord], bytes] = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(RequestRecord).decode

    def __len__(self) -> int:
        """Those that are kept, without those that run."""
        return len(self._kept)

    def begin(self, request: T) -> None:
        """A request has come."""
        self._running.add(request)

    def end(self, request: T) -> None:
        """Nothing is added to it any more."""
        self._running.discard(request)
        tenant, data = request.tenant, self._encode(request.told())
        kept = _Kept(request.id, request.own_id, request.answer_id, tenant, request.at, data)
        self._count += 1
        self._kept[self._count] = kept
        self._of.setdefault(tenant, deque()).append(self._count)
        self._add(tenant, _size(kept))
        while self._kept and (len(self._kept) > self.most or self.num_bytes > self.most_bytes):
            self._make_way()

    def _make_way(self) -> None:
        """Drops the oldest one: of the tenant that has most, where that is more than a quarter, else of all."""
        if self._heavy:
            tenant = max(self._heavy, key=self._bytes.__getitem__)
        else:
            tenant = next(iter(self._kept.values())).tenant
        keys = self._of[tenant]
        size = _size(self._kept.pop(keys.popleft()))
        self._add(tenant, -size)
        if not keys:
            del self._of[tenant], self._bytes[tenant]

    def _add(self, tenant: str, size: int) -> None:
        self.num_bytes += size
        self._bytes[tenant] += size
        is_heavy = (
            self._bytes[tenant] * _SHARE > self.most_bytes or len(self._of[tenant]) * _SHARE > self.most
        )
        (self._heavy.add if is_heavy else self._heavy.discard)(tenant)

    def find(self, name: str) -> RequestRecord | None:
        """The latest request with this id, or whose answer has it. Looks at all of them: for people, not for calls."""
        every: list[T | _Kept] = [*reversed(self._kept.values()), *self._running]
        found = [each for each in every if name in (each.own_id, each.id, each.answer_id)]
        if not name or not found:
            return None
        # Clients may give many requests one id; ours is of one alone.
        first, *others = sorted(found, key=lambda each: (each.own_id == name, each.at), reverse=True)
        record = self._decode(first.data) if isinstance(first, _Kept) else first.told()
        record.at = _moment(first.at)
        record.same_id = [each.own_id for each in others[:_MOST_LISTED]]
        record.num_same_id = len(others)
        return record


def _moment(at: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1e3):03d}Z"


def _size(kept: _Kept) -> int:
    return _OVERHEAD + len(kept.id) + len(kept.own_id) + len(kept.answer_id) + len(kept.data)
