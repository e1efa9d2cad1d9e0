"""The pieces of the naive scheduler: a ledger of dicts and a pool of lists."""

from __future__ import annotations

UNIT = 1 << 20
"""One unit of service at weight 1."""

Key = tuple[int, tuple[int, ...], tuple[tuple[int, bytes], ...]]
"""What names a full block: the serial of the entry before it, its tokens, the salts that start in it."""


class NaiveLedger:
    """Virtual token counters. `lifts` False is the published mistake: joiners are not lifted."""

    def __init__(self, *, lifts: bool = True, max_idle: int | None = None) -> None:
        self.lifts = lifts
        self.max_idle = max_idle
        self.counter: dict[int, int] = {}
        self.cost: dict[int, int] = {}
        self.heads: dict[int, tuple[int, int]] = {}
        self.running: dict[int, int] = {}
        self.now = 0
        self.lost_debt = 0

    def raise_now(self) -> None:
        if self.heads:
            self.now = max(self.now, min(self.counter[t] for t in self.heads))
        for tenant in self.idle():
            if self.lifts and self.counter[tenant] <= self.now:
                del self.counter[tenant]

    def idle(self) -> list[int]:
        return [t for t in self.counter if t not in self.heads and not self.running.get(t)]

    def enter(self, tenant: int, weight: float, head: tuple[int, int]) -> None:
        self.cost[tenant] = round(UNIT / weight)
        self.counter.setdefault(tenant, 0)
        if self.lifts:
            self.counter[tenant] = max(self.counter[tenant], self.now)
        self.heads[tenant] = head
        self.raise_now()

    def leave(self, tenant: int) -> None:
        del self.heads[tenant]
        self.raise_now()
        self.retire(tenant)

    def end_work(self, tenant: int) -> None:
        self.running[tenant] -= 1
        self.retire(tenant)

    def retire(self, tenant: int) -> None:
        if tenant in self.heads or self.running.get(tenant):
            return
        if not self.heads:
            self.now = max(self.now, self.counter.get(tenant, self.now))
        self.raise_now()
        if self.max_idle is not None and len(self.idle()) > self.max_idle:
            cheapest = min(self.idle(), key=lambda t: (self.counter[t], t))
            self.lost_debt += self.counter.pop(cheapest) - self.now

    def charge(self, tenant: int, service: int) -> None:
        self.counter[tenant] += service * self.cost[tenant]
        if tenant in self.heads:
            self.raise_now()

    def order(self) -> list[int]:
        return sorted(self.heads, key=lambda t: (self.counter[t], self.heads[t]))


class NaivePool:
    """Blocks by content: `holders` lists the blocks of one entry, preferred first."""

    def __init__(self, capacity: int) -> None:
        self.refs = [0] * capacity
        self.key_of: dict[int, Key] = {}
        self.holders: dict[Key, list[int]] = {}
        self.serials: dict[Key, int] = {}
        self.last_serial = 0
        self.order = list(range(capacity))

    def available(self) -> int:
        return len(self.order)

    def take(self) -> int:
        block = self.order.pop(0)
        self.forget(block)
        self.refs[block] = 1
        return block

    def forget(self, block: int) -> None:
        key = self.key_of.pop(block, None)
        if key is not None:
            self.holders[key].remove(block)
            if not self.holders[key]:
                del self.holders[key], self.serials[key]

    def hold(self, block: int) -> None:
        self.refs[block] += 1
        if self.refs[block] == 1:
            self.order.remove(block)
            twins = self.holders[self.key_of[block]]
            twins.insert(0, twins.pop(twins.index(block)))

    def release(self, table: list[int]) -> None:
        for block in reversed(table):
            self.refs[block] -= 1
            if self.refs[block] > 0:
                continue
            key = self.key_of.get(block)
            if key is None:
                self.order.insert(0, block)
            else:
                self.order.append(block)
                twins = self.holders[key]
                twins.append(twins.pop(twins.index(block)))

    def publish(self, block: int, key: Key) -> int:
        if key not in self.holders:
            self.last_serial += 1
            self.serials[key] = self.last_serial
        self.key_of[block] = key
        self.holders.setdefault(key, []).insert(0, block)
        return self.serials[key]
