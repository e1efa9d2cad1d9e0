"""The blocks of one model's requests: what they hit, hold, and were promised. Everything is counted anew."""

from __future__ import annotations

import copy

from .harness import Config, ModelSpec
from .naive_parts import Key
from .naive_queue import NaiveQueue
from .naive_quotas import NaiveQuotaPool, Promises
from .naive_request import NaiveRequest


class NaiveBlocks(NaiveQueue):
    """Knows who fits; decides nothing about who runs."""

    def __init__(self, spec: ModelSpec, config: Config) -> None:
        # Best effort has a band of its own behind those of the classes.
        super().__init__(config, config.num_bands + bool(spec.targets))
        self.spec = spec
        self.block = spec.block_size
        self.pool = NaiveQuotaPool(spec.blocks)
        self.decodes: list[NaiveRequest] = []
        self.prefills: list[NaiveRequest] = []
        self.deltas: list[tuple[int, int, int]] = []

    def running(self) -> list[NaiveRequest]:
        return self.decodes + self.prefills

    # Contents.

    def key(self, r: NaiveRequest, i: int, parent: int) -> Key:
        size = self.block
        tokens = tuple(r.text[i * size : (i + 1) * size])
        return parent, tokens, tuple(s for s in r.salts if s[0] // size == i)

    def hits(self, r: NaiveRequest) -> list[int]:
        return self.walk(r)[0]

    def walk(self, r: NaiveRequest) -> tuple[list[int], int]:
        found: list[int] = []
        tail = 0
        if r.compute_all or not self.spec.prefix_caching:
            return found, tail
        while len(found) < (len(r.text) - 1) // self.block:
            key = self.key(r, len(found), tail)
            if key not in self.pool.holders:
                break
            tail = self.pool.serials[key]
            found.append(self.pool.holders[key][0])
        return found, tail

    def publish(self, r: NaiveRequest) -> None:
        if not self.spec.prefix_caching:
            return
        for i in range(r.published, r.computed // self.block):
            r.tail = self.pool.publish(r.table[i], self.key(r, i, r.tail))
            r.published += 1

    # Promises.

    def promises(self) -> Promises:
        promised = Promises()
        for r in self.running():
            promised[r.group] += max(r.promised - len(r.table), 0)
        return promised

    def outstanding(self) -> int:
        return self.promises().total()

    def pinned(self, r: NaiveRequest) -> bool:
        return r.preemptions >= self.config.max_preemptions

    def to_completion(self, r: NaiveRequest) -> bool:
        return self.spec.admission == 0 or self.pinned(r)

    def demand(self, r: NaiveRequest) -> int:
        return -(-(r.max_length if self.to_completion(r) else len(r.text)) // self.block)

    def fits(self, r: NaiveRequest) -> bool:
        """Whether all promises could be kept, and what is protected stay so, if `r` were admitted."""
        hits = self.hits(r)
        promised = self.promises()
        promised[self.pool.group_of(r.tenant)] += self.demand(r) - len(hits)
        spare = 0
        if self.running() and not self.to_completion(r):
            spare = -int(-self.spec.watermark * self.spec.blocks // 1)
        idle_hits = sum(self.pool.refs[b] == 0 for b in hits)
        kept = promised.total() + self.pool.idle(promised, hits)
        return self.pool.available() - idle_hits - kept >= spare

    def would_fit(self, r: NaiveRequest, leaving: list[NaiveRequest]) -> bool:
        """Whether `r` fits once all of `leaving` are gone: they go, in a copy."""
        trial = copy.copy(self)
        trial.pool = copy.deepcopy(self.pool)
        trial.decodes = [d for d in self.decodes if d not in leaving]
        trial.prefills = [p for p in self.prefills if p not in leaving]
        for other in leaving:
            trial.pool.release(other.table)
        return trial.fits(r)

    def can_grow(self, r: NaiveRequest) -> bool:
        """Whether one more block can be had for `r`: promised to it, anybody's, or kept for its tenant."""
        promised = self.promises()
        own = 0 if r.group is None else max(0, self.pool.protected(r.group) - promised[r.group])
        return r.promised > len(r.table) or self.pool.spare(promised) + own > 0

    def may_yield(self, r: NaiveRequest, needy: NaiveRequest) -> bool:
        """Q1: no tenant within its quota loses memory to another."""
        return r.tenant == needy.tenant or self.pool.is_over(r.group)

    def gain(self, r: NaiveRequest) -> int:
        """The blocks that preempting `r` makes available."""
        return sum(self.pool.refs[b] == 1 for b in r.table) + max(r.promised - len(r.table), 0)

    def grow(self, r: NaiveRequest, upto: int) -> None:
        """What it takes is promised no more before the first block is taken."""
        held = len(r.table)
        r.table += [-1] * (-(-upto // self.block) - held)
        for i in range(held, len(r.table)):
            r.table[i] = self.pool.take_for(r.group, self.promises())
            self.deltas.append((r.slot, i, r.table[i]))

    # Quotas.

    def set_quota(self, tenant: int, blocks: int, of_tenant: list[NaiveRequest]) -> None:
        self.pool.set_quota(tenant, blocks)
        if blocks == 0:
            for r in of_tenant:
                r.group = None

    def never_fits(self, r: NaiveRequest) -> bool:
        """Whether quotas of others keep what `r` needs."""
        kept = sum(blocks for tenant, blocks in self.pool.wanted.items() if tenant != r.tenant)
        return -(-r.max_length // self.block) > self.spec.blocks - kept
