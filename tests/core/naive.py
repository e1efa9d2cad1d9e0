"""The scheduling core once more, in lists and dicts and O(n): what the C++ core is compared with.

Nothing here is fast or shared with the core; every choice is a min() or a scan in the order in which
scheduling.md tells it.
"""

from __future__ import annotations

from .harness import Config, ModelSpec
from .naive_blocks import NaiveBlocks
from .naive_dedupe import NaiveDedupe
from .naive_parts import UNIT
from .naive_request import NaiveRequest, NaiveRow
from .naive_slo import NaivePolicy


class NaiveScheduler(NaiveBlocks):
    """One model's scheduler; plan() must equal the core's, row by row and delta by delta."""

    def __init__(self, spec: ModelSpec, config: Config) -> None:
        super().__init__(spec, config)
        self.cap = spec.max_prefill_chunk or 1 << 30
        self.slo = NaivePolicy(
            spec.targets,
            credit=spec.itl_credit,
            tile=spec.block_size,
            max_tokens=spec.max_batch_tokens,
            bands=config.num_bands,
            aging=config.aging_us,
        )
        self.free_slots = list(range(spec.max_num_seqs - 1, -1, -1))
        self.dedupe = NaiveDedupe(self, config.dedupe_steps)
        self.ended: list[tuple[int, str]] = []
        self.preempted_ever = 0

    def next(self) -> NaiveRequest | None:
        """The head, after those before it that cannot be in time any more became best effort."""
        while (r := self.head()) is not None and self.slo.is_hopeless(r, len(self.hits(r)) * self.block):
            self.dequeue(r)
            r.best_effort_until = self.slo.stay(r)
            r.band = self.config.num_bands
            self.slo.counts["best_effort"] += 1
            self.enqueue(r)
        return r

    # One step.

    def plan(self, now: int, start: int) -> tuple[list[NaiveRow], list[tuple[int, int, int]]]:
        self.rows: list[NaiveRow] = []
        self.deltas = []
        self.limit = self.num_bands
        self.slo.start = start
        self.overserved: set[int] = set()
        self.preempted: list[tuple[NaiveRequest, int]] = []
        self.admitted: list[NaiveRequest] = []
        self.pool.settle(self.promises())
        self.dedupe.begin_step()
        self.promote(now)
        self.make_room(now)
        self.dedupe.release_orphans(now)
        if self.slo.active:
            head = self.next()
            some = self.free_slots and self.pool.available() > self.outstanding()
            self.slo.grant(self.decodes, self.prefills, head if some else None)
        self.admit_urgent(now)
        self.slo.regrant(self.decodes, self.prefills)
        self.dedupe.release_orphans(now)
        for r in self.decodes:
            if self.slo.rests(r):
                self.slo.counts["rests"] += 1
            else:
                self.add_row(r, 1)
        self.budget = self.tokens_left(len(self.rows))
        for r, chunk in zip(list(self.prefills), self.shares(), strict=True):
            self.add_chunk(r, chunk)
        self.admit_waiting(now)
        self.dedupe.latest = self.slo.work(self.rows)
        return self.rows, self.deltas

    def tokens_left(self, decodes: int) -> int:
        left = self.spec.max_batch_tokens - decodes
        return min(left, self.slo.tokens) if self.slo.active else left

    def add_row(self, r: NaiveRequest, count: int) -> None:
        self.rows.append(NaiveRow(request=r, count=count, first=r.first))
        r.first = False

    def add_chunk(self, r: NaiveRequest, chunk: int) -> None:
        if chunk > 0:
            self.grow(r, r.computed + chunk)
            self.add_row(r, chunk)
            self.budget -= chunk

    def aligned(self, r: NaiveRequest, limit: int) -> int:
        remaining = len(r.text) - r.computed
        if limit >= remaining:
            return remaining
        return (r.computed + limit) // self.block * self.block - r.computed

    def shares(self) -> list[int]:
        left = max(self.budget, 0)
        if not self.prefills or left == 0:
            return [0] * len(self.prefills)
        share = min(self.cap, max(self.block, left // len(self.prefills)))
        chunks = []
        for r in self.prefills:
            chunks.append(min(self.aligned(r, share), left))
            left -= chunks[-1]
        for i, r in enumerate(self.prefills):
            more = min(self.aligned(r, self.cap), chunks[i] + left)
            if more > chunks[i]:
                left -= more - chunks[i]
                chunks[i] = more
        return chunks

    def dispatch(self, r: NaiveRequest, now: int) -> None:
        hits, tail = self.walk(r)
        ledger = self.ledgers[r.band]
        promised = self.demand(r)
        ledger.running[r.tenant] = ledger.running.get(r.tenant, 0) + 1
        self.dequeue(r)
        r.waited += max(now - r.since, 0)
        ledger.charge(r.tenant, self.prompt_charge(r, len(hits)))
        if r.cached is None:
            r.cached = len(hits) * self.block
        r.state, r.first, r.bypassed = "prefill", True, 0
        r.slot = self.free_slots.pop()
        r.promised, r.group = promised, self.pool.group_of(r.tenant)
        for i, block in enumerate(hits):
            self.pool.hold(block)
            self.deltas.append((r.slot, i, block))
        r.table = list(hits)
        r.computed = len(hits) * self.block
        r.tail, r.published, r.hit_blocks = tail, len(hits), len(hits)
        self.admitted.append(r)
        at = next((i for i, other in enumerate(self.prefills) if other.band > r.band), len(self.prefills))
        self.prefills.insert(at, r)

    def prompt_charge(self, r: NaiveRequest, hits: int) -> int:
        if r.cached is not None:
            return 0
        cached = hits * self.block
        return (r.prompt - cached) * self.config.w_prompt + cached * self.config.w_hit

    def worst(self, among: list[NaiveRequest]) -> NaiveRequest:
        def cost(r: NaiveRequest) -> tuple[float, ...]:
            freed = self.gain(r)
            lost = max(r.computed - r.published * self.block, 0)
            ratio = lost / freed if freed else float("inf")
            return -r.band, -self.ledgers[r.band].counter[r.tenant], ratio, -r.arrival, -r.id

        return min(among, key=cost)

    def preempt(self, r: NaiveRequest, now: int) -> None:
        r.preemptions += 1
        self.preempted_ever += 1
        self.preempted.append((r, r.band))
        self.stop(r)
        self.push(r, now)

    def stop(self, r: NaiveRequest) -> None:
        self.pool.release(r.table)
        r.table, r.promised, r.computed, r.tail, r.published = [], 0, 0, 0, 0
        self.free_slots.append(r.slot)
        (self.decodes if r.state == "decode" else self.prefills).remove(r)
        self.ledgers[r.band].end_work(r.tenant)
        r.state = "stopped"

    def leads(self, r: NaiveRequest, head: NaiveRequest) -> bool:
        """Whether the tenant of `r`, which runs, is too far ahead of the head's."""
        gap = self.config.fairness_gap_tokens
        if gap is None or r.band != head.band or r.tenant in [a.tenant for a in self.admitted]:
            return False
        counter = self.ledgers[head.band].counter
        return counter[r.tenant] - counter[head.tenant] > gap * UNIT

    def yields(self, r: NaiveRequest, head: NaiveRequest) -> bool:
        return r.band > head.band and r.first_band > head.first_band and not self.pinned(r)

    def barred(self, head: NaiveRequest) -> bool:
        return head.band >= self.limit or head.tenant in self.overserved

    def room_before_split(self, head: NaiveRequest) -> int:
        ahead = sum(r.band <= head.band for r in self.prefills)
        return self.tokens_left(len(self.decodes)) - ahead * self.block

    def least(self, r: NaiveRequest) -> int:
        """The fewest tokens that it can begin with."""
        return len(r.text) if self.spec.whole_prompts else 1

    def lacks(self, head: NaiveRequest) -> bool:
        """A slot, or blocks."""
        return not self.free_slots or not self.fits(head)

    def admit_urgent(self, now: int) -> None:
        while (head := self.next()) is not None and not self.barred(head):
            if not any(r.band > head.band or self.leads(r, head) for r in self.running()):
                return
            if self.room_before_split(head) < self.least(head):
                return
            held = self.dedupe.hold(head, self.room_before_split(head))
            while held is False and self.lacks(head):
                over = [r for r in self.running() if self.leads(r, head)]
                if not over:
                    break
                victim = self.worst(over)
                self.overserved.add(victim.tenant)
                self.preempt(victim, now)
                held = self.dedupe.hold(head, self.room_before_split(head))
            if held is False and self.lacks(head):
                leaving = [r for r in self.running() if self.yields(r, head)]
                if not leaving or not self.would_fit(head, leaving):
                    return
            while held is False and self.lacks(head):
                victim = self.worst([r for r in self.running() if self.yields(r, head)])
                self.limit = min(self.limit, victim.band)
                self.preempt(victim, now)
                held = self.dedupe.hold(head, self.room_before_split(head))
            if held is None:
                return
            if not held:
                self.dispatch(head, now)

    def make_room(self, now: int) -> None:
        for r in list(self.decodes):
            if r.state != "decode" or r.computed < len(r.table) * self.block:
                continue
            while not self.can_grow(r):
                victim = self.worst(
                    [v for v in self.running() if not self.pinned(v) and self.may_yield(v, r)]
                )
                self.limit = min(self.limit, victim.band)
                self.preempt(victim, now)
                if victim is r:
                    break
            if r.state == "decode":
                self.grow(r, r.computed + 1)

    def admit_waiting(self, now: int) -> None:
        while (head := self.next()) is not None:
            self.budget = self.slo.room(self.rows, self.budget)
            if self.budget < self.least(head) or not self.free_slots or self.barred(head):
                return
            held = self.dedupe.hold(head, self.budget)
            if held is None:
                return
            if held:
                continue
            chosen = head if self.fits(head) else self.passing(head)
            if chosen is None or self.budget < self.least(chosen):
                return
            self.dispatch(chosen, now)
            most = min(self.budget, len(chosen.text) - chosen.computed)
            room = self.slo.room_for(self.rows, chosen.computed, most)
            self.add_chunk(chosen, min(self.aligned(chosen, self.cap), room))

    def passing(self, head: NaiveRequest) -> NaiveRequest | None:
        allowance = self.config.bypass_tokens - head.bypassed
        for r in self.in_order(head.band)[:64]:
            service = self.prompt_charge(r, len(self.hits(r)))
            service += (r.max_length - len(r.text)) * self.config.w_decode
            if r is not head and not self.barred(r) and service <= allowance and self.fits(r):
                held = self.dedupe.hold(r, self.budget)
                if held is not False:
                    return self.passing(head) if held else None
                head.bypassed += service
                return r
        return None

    # What a step brings.

    def commit(
        self,
        rows: list[NaiveRow],
        tokens: dict[int, int],
        status: dict[int, int],
        *,
        took: int,
        emitted: int,
    ) -> None:
        work = self.slo.work(rows)
        self.emitted = emitted
        self.commit_rows(rows, tokens, status)
        if 2 not in status.values():
            self.slo.model.observe(work, took)

    def commit_rows(self, rows: list[NaiveRow], tokens: dict[int, int], status: dict[int, int]) -> None:
        for row in rows:
            r = row.request
            r.computed += row.count
            if r.id in status:
                for block in r.table[0 if r.preemptions else r.hit_blocks :]:
                    self.pool.forget(block)
                self.end(r, "nan" if status[r.id] == 1 else "failed")
                continue
            self.publish(r)
            if r.id in tokens:
                self.sampled(r, tokens[r.id])

    def sampled(self, r: NaiveRequest, token: int) -> None:
        r.text.append(token)
        self.ledgers[r.band].charge(r.tenant, self.config.w_decode)
        self.slo.note(r, self.emitted)
        if len(r.text) >= r.min_length and token in r.stop:
            self.slo.note_end(r)
            self.end(r, "stop")
        elif len(r.text) >= r.max_length:
            self.slo.note_end(r)
            self.end(r, "length")
        elif r.state == "prefill":
            r.state = "decode"
            self.prefills.remove(r)
            self.decodes.append(r)

    def end(self, r: NaiveRequest, reason: str) -> None:
        if r in self.waiting:
            self.dequeue(r)
        elif r.state == "held":
            self.dedupe.remove(r)
        else:
            self.stop(r)
        self.ended.append((r.id, reason))
