"""Occupancy quotas once more: who owns a block is a dict, and what is protected is counted at every question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from .naive_parts import NaivePool

Promises = Counter[int | None]
"""Blocks promised and not taken, by tenant with a quota; None: of all others."""


class NaiveQuotaPool(NaivePool):
    """A pool in which tenants keep some of what they have had: Q1."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.owner: dict[int, int] = {}
        self.wanted: dict[int, int] = {}
        self.quota: dict[int, int] = {}
        self.places: list[int | None] = []
        """In this order quotas rise; who is new takes the first place that is empty."""

    def group_of(self, tenant: int) -> int | None:
        return tenant if tenant in self.quota else None

    def set_quota(self, tenant: int, blocks: int) -> None:
        if blocks == 0:
            self.end_quota(tenant)
            return
        if tenant not in self.quota:
            self.quota[tenant] = 0
            free = self.places.index(None) if None in self.places else len(self.places)
            self.places[free : free + 1] = [tenant]
        self.wanted[tenant] = blocks
        self.quota[tenant] = min(self.quota[tenant], blocks)

    def end_quota(self, tenant: int) -> None:
        """What it had is nobody's, as if released just now."""
        if tenant not in self.quota:
            return
        del self.quota[tenant], self.wanted[tenant]
        self.places[self.places.index(tenant)] = None
        cached = [b for b in self.order if self.owner.get(b) == tenant]
        self.order = [b for b in self.order if b not in cached] + cached
        self.owner = {b: t for b, t in self.owner.items() if t != tenant}

    def is_over(self, group: int | None) -> bool:
        return group is None or Counter(self.owner.values())[group] > self.quota[group]

    def protected(self, tenant: int, held: Collection[int] = ()) -> int:
        """CACHED blocks that only the tenant may evict, once `held` are in use."""
        owned = sum(t == tenant for t in self.owner.values())
        cached = sum(self.owner.get(b) == tenant and b not in held for b in self.order)
        return cached - min(cached, max(0, owned - self.quota[tenant]))

    def idle(self, promised: Promises, held: Collection[int] = ()) -> int:
        """What is protected beyond what its tenants were promised: of no use to others."""
        return sum(max(0, self.protected(t, held) - promised[t]) for t in self.quota)

    def spare(self, promised: Promises) -> int:
        return self.available() - promised.total() - self.idle(promised)

    def settle(self, promised: Promises) -> None:
        """Quotas rise block by block, as far as promises to others allow."""
        for tenant in filter(lambda t: t is not None, self.places):
            assert tenant is not None
            while self.quota[tenant] < self.wanted[tenant]:
                self.quota[tenant] += 1
                if self.spare(promised) < 0:
                    self.quota[tenant] -= 1
                    break

    def take_for(self, group: int | None, promised: Promises) -> int:
        """A FREE block, or the oldest that is not another's to keep; where all else is promised, one's own."""
        only_own = self.spare(promised) <= 0
        block = next(b for b in self.order if self.may_take(group, b, only_own=only_own))
        self.order.remove(block)
        self.forget(block)
        self.refs[block] = 1
        self.owner.pop(block, None)
        if group is not None:
            self.owner[block] = group
        return block

    def may_take(self, group: int | None, block: int, *, only_own: bool) -> bool:
        owner = self.owner.get(block)
        if owner is not None and owner == group:
            return True
        return not only_own and (owner is None or self.is_over(owner))

    def release(self, table: list[int]) -> None:
        super().release(table)
        for block in table:
            if self.refs[block] == 0 and block not in self.key_of:
                self.owner.pop(block, None)
