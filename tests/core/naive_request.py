"""What the naive scheduler keeps of a request, and the rows it plans."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False, kw_only=True)
class NaiveRequest:
    """A request and all that the core may know of it."""

    id: int
    tenant: int
    first_band: int
    arrival: int
    deadline: int | None
    text: list[int]
    prompt: int
    max_length: int
    min_length: int
    stop: tuple[int, ...]
    salts: tuple[tuple[int, bytes], ...]
    compute_all: bool
    band: int = 0
    since: int = 0
    waited: int = 0
    state: str = "waiting"
    computed: int = 0
    slot: int = -1
    table: list[int] = field(default_factory=list)
    tail: int = 0
    published: int = 0
    hit_blocks: int = 0
    promised: int = 0
    group: int | None = None
    preemptions: int = 0
    bypassed: int = 0
    held_steps: int = 0
    cached: int | None = None
    first: bool = False
    token_due: int = 0
    best_effort_until: int | None = None
    was_late: bool = False

    def key(self) -> tuple[int, int]:
        return self.arrival, self.id


@dataclass(kw_only=True)
class NaiveRow:
    """What a row of the plan must be."""

    request: NaiveRequest
    count: int
    first: bool
