"""Slabs that move between models, in lists and dicts: what the core's exchange is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .naive_slabs import NaiveSlabPool
from .test_slab_arena import naive_targets


@dataclass(kw_only=True)
class NaiveModel:
    """What the exchange knows of a model."""

    low: int
    high: int
    weight: float
    pool: NaiveSlabPool
    wanted: int = 0
    promised: int = 0
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class Move:
    """A slab that changed hands: when, from whom (None: FREE), to whom, and why it could."""

    now: int
    slab: int
    giver: int | None
    taker: int
    forced: bool


class Vacate(Protocol):
    """Takes requests of a model off until a slab can go."""

    def __call__(self, model: int, slab: int) -> None: ...


class NaiveExchange:
    """Every rule is one comprehension over all slabs or all models."""

    def __init__(self, num_slabs: int, per_slab: int, hysteresis: int, vacate: Vacate) -> None:
        self.num_slabs, self.per_slab, self.hysteresis, self.vacate = num_slabs, per_slab, hysteresis, vacate
        self.models: list[NaiveModel] = []
        self.owner: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.moved: dict[int, int] = {}
        self.moves: list[Move] = []

    def add_model(self, low: int, high: int, weight: float) -> None:
        pool = NaiveSlabPool(self.num_slabs, self.per_slab)
        self.models.append(NaiveModel(low=low, high=high, weight=weight, pool=pool))

    def owned(self, model: int) -> list[int]:
        return [s for s in range(self.num_slabs) if self.owner.get(s) == model]

    def active(self, model: int) -> int:
        return sum(r > 0 for r in self.models[model].pool.refs.values())

    def targets(self, asking: int, more: int) -> list[int]:
        wanted = []
        for i, m in enumerate(self.models):
            running = self.active(i) + (m.pool.available() + more if i == asking else m.promised)
            wanted.append(-(-max(m.wanted, running) // self.per_slab))
        return naive_targets(self.num_slabs, [(m.low, m.high, m.weight) for m in self.models], wanted)

    def collect(self) -> None:
        for i, m in enumerate(self.models):
            for slab in sorted(m.pool.draining):
                if m.pool.active_in(slab) == 0:
                    self.release(i, slab)

    def release(self, model: int, slab: int) -> None:
        self.models[model].pool.remove_slab(slab)
        del self.owner[slab]

    def lost(self, model: int, slab: int) -> int:
        pool = self.models[model].pool
        return 0 if slab in pool.draining else self.per_slab - pool.active_in(slab)

    def covers(self, model: int, slab: int) -> bool:
        m = self.models[model]
        return m.pool.available() - self.lost(model, slab) >= m.promised

    def best(self, model: int, slabs: list[int]) -> int | None:
        pool = self.models[model].pool
        return min(
            slabs, key=lambda s: (pool.active_in(s), pool.cached_in(s), self.moved[s], s), default=None
        )

    def donors(self, asking: int, targets: list[int], *, keeps_target: bool) -> list[int]:
        keep = targets if keeps_target else [m.low for m in self.models]
        donors = [i for i in range(len(self.models)) if i != asking and len(self.owned(i)) > keep[i]]
        return sorted(donors, key=lambda i: (targets[i] - len(self.owned(i)), i))

    def rested(self, model: int, slabs: list[int], now: int, *, forced: bool) -> list[int]:
        return [s for s in slabs if forced or now - self.moved[s] >= self.hysteresis]

    def reclaim(self, asking: int, targets: list[int], now: int) -> int | None:
        below = len(self.owned(asking)) < self.models[asking].low
        forced = below or self.active(asking) == 0
        for donor in self.donors(asking, targets, keeps_target=not below):
            pool = self.models[donor].pool
            idle = [s for s in self.owned(donor) if pool.active_in(s) == 0 and self.covers(donor, s)]
            slab = self.best(donor, self.rested(donor, idle, now, forced=forced))
            if slab is not None:
                self.release(donor, slab)
                self.note(now, slab, donor, asking, forced=forced)
                return slab
        return None

    def vacate_one(self, asking: int, targets: list[int], now: int) -> int | None:
        for donor in self.donors(asking, targets, keeps_target=False):
            slab = self.best(donor, self.owned(donor))
            if slab is not None:
                self.vacate(donor, slab)
                self.release(donor, slab)
                self.note(now, slab, donor, asking, forced=True)
                return slab
        return None

    def note(self, now: int, slab: int, giver: int | None, taker: int, *, forced: bool) -> None:
        self.moves.append(Move(now=now, slab=slab, giver=giver, taker=taker, forced=forced))

    def take_one(self, model: int, missing: int, targets: list[int], now: int) -> int | None:
        m = self.models[model]
        owned = len(self.owned(model))
        free = [s for s in range(self.num_slabs) if s not in self.owner]
        due = owned < targets[model]
        others = any(
            o.missing and len(self.owned(i)) < targets[i] for i, o in enumerate(self.models) if i != model
        )
        if owned >= m.high or (not due and (len(free) < missing or others)):
            return None
        own = [s for s in free if self.last.get(s) == model]
        if free:
            slab = min(own or free)
            self.note(now, slab, None, model, forced=False)
            return slab
        found = self.reclaim(model, targets, now)
        return self.vacate_one(model, targets, now) if found is None and owned < m.low else found

    def grow(self, model: int, blocks: int, now: int, room: int) -> tuple[bool, list[int]]:
        self.collect()
        targets = self.targets(model, blocks)
        needed = -(-blocks // self.per_slab)
        taken = 0
        zeroed: list[int] = []
        while taken < needed and len(zeroed) < room:
            slab = self.take_one(model, needed - taken, targets, now)
            if slab is None:
                break
            if self.last.get(slab, model) != model:
                zeroed.append(slab)
            self.owner[slab] = self.last[slab] = model
            self.moved[slab] = now
            self.models[model].pool.add_slab(slab)
            taken += 1
        due = max(0, targets[model] - len(self.owned(model)))
        self.models[model].missing = due if taken < needed else 0
        if self.models[model].missing:
            self.drain_for(model, targets, now)
        return taken > 0, zeroed

    def drain_for(self, model: int, targets: list[int], now: int) -> None:
        missing = self.models[model].missing - sum(len(m.pool.draining) for m in self.models)
        forced = self.active(model) == 0
        for donor in self.donors(model, targets, keeps_target=True):
            pool = self.models[donor].pool
            beyond = len(self.owned(donor)) - len(pool.draining) - targets[donor]
            while missing > 0 and beyond > 0:
                used = [
                    s
                    for s in self.rested(donor, self.owned(donor), now, forced=forced)
                    if pool.active_in(s) and s not in pool.draining and self.covers(donor, s)
                ]
                slab = self.best(donor, used)
                if slab is None:
                    break
                pool.drain_slab(slab)
                missing, beyond = missing - 1, beyond - 1
