"""Requests that wait for a prefix which another computes, once more: who holds whom is compared block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .naive_request import NaiveRequest

if TYPE_CHECKING:
    from .naive import NaiveScheduler
    from .naive_slo import Work


@dataclass
class NaiveHeld:
    """A request out of the queue, until its producer has published `target` blocks."""

    request: NaiveRequest
    producer: NaiveRequest
    matched: int
    target: int
    room: int
    computed: int


class NaiveDedupe:
    """The twin of PrefixDedupe."""

    def __init__(self, scheduler: NaiveScheduler, steps: int) -> None:
        self.scheduler = scheduler
        self.steps = steps
        self.block = scheduler.block
        self.held: list[NaiveHeld] = []
        self.latest: Work = (0, 0, 0, 0.0)
        self.holds = 0

    def content(self, r: NaiveRequest, blocks: int) -> object:
        end = blocks * self.block
        return r.text[:end], [s for s in r.salts if s[0] < end]

    def shared(self, r: NaiveRequest, other: NaiveRequest) -> int:
        """Leading blocks that both have; the last token of `r` is always computed."""
        most = min((len(r.text) - 1) // self.block, len(other.text) // self.block)
        return max(n for n in range(most + 1) if self.content(r, n) == self.content(other, n))

    def pays(self, shared: int, context: int, room: int, missing: int, chunk: int, step: Work) -> bool:
        """Whether `shared` tokens, `room` in a step, take no less time than `missing` of another, `chunk` in a step."""
        estimate = self.scheduler.slo.model.estimate
        tokens, seqs, decodes, pairs = step
        own = min(shared, room)
        longer = (tokens + own, seqs, decodes, pairs + own * (context + 0.5 * own))
        usual = estimate(step)
        gain = (-(-shared // own) - 1) * usual + (estimate(longer) - usual)
        more_steps = -(-max(missing - chunk, 0) // max(chunk, 1))
        return gain >= more_steps * usual + estimate((0, 0, 0, 0.0))

    def is_full(self) -> bool:
        """Whether a head that should wait for a prefix waits in its place instead."""
        return len(self.held) >= self.scheduler.spec.max_num_seqs

    def hold(self, r: NaiveRequest, room: int) -> bool | None:
        """Takes a head out of the queue where that pays; None: it pays, but no more are held than there are slots."""
        s = self.scheduler
        matched = len(s.hits(r))
        if r.compute_all or not s.spec.prefix_caching or r.held_steps >= self.steps:
            return False
        producer = next(
            (p for p in s.prefills if p.published <= matched < self.shared(r, p)),
            None,
        )
        if producer is None:
            return False
        target = self.shared(r, producer)
        missing = target * self.block - producer.computed
        chunk = missing
        if s.rows:
            chunk = sum(row.count for row in s.rows if row.request is producer)
        shared = (target - matched) * self.block
        step = s.slo.work(s.rows) if s.rows else self.latest
        room = min(room, s.cap)
        if missing > 0 and chunk == 0:
            return False
        if not self.pays(shared, matched * self.block, room, missing, chunk, step):
            return False
        if self.is_full():
            return None
        s.dequeue(r)
        r.state = "held"
        r.held_steps += 1
        self.holds += 1
        self.held.append(NaiveHeld(r, producer, matched, target, room, producer.computed))
        return True

    def still_holds(self, h: NaiveHeld) -> bool:
        p = h.producer
        if p not in self.scheduler.prefills or h.request.held_steps >= self.steps or p.published >= h.target:
            return False
        indexed = max(p.published, h.matched) * self.block
        end = h.target * self.block
        missing, chunk = end - p.computed, p.computed - h.computed
        pays = self.pays(end - indexed, indexed, h.room, missing, chunk, self.latest)
        return pays and (missing <= 0 or chunk > 0)

    def begin_step(self) -> None:
        held, self.held = self.held, []
        for h in held:
            if self.still_holds(h):
                h.computed = h.producer.computed
                h.request.held_steps += 1
                self.held.append(h)
            else:
                self.scheduler.push(h.request, h.request.since)

    def release_orphans(self, now: int) -> None:
        """What comes back stands in the band that it has aged to."""
        held, self.held = self.held, []
        for h in held:
            if h.producer in self.scheduler.prefills:
                self.held.append(h)
            else:
                self.scheduler.push(h.request, h.request.since)
        self.scheduler.promote(now)

    def remove(self, r: NaiveRequest) -> None:
        self.held = [h for h in self.held if h.request is not r]
