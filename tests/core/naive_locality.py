"""Deficits and the order by prefix once more: a number per tenant, a scan per choice."""

from __future__ import annotations

from .harness import Config, ModelSpec
from .naive import NaiveScheduler
from .naive_parts import UNIT, NaiveLedger
from .naive_request import NaiveRequest

Offer = tuple[int, tuple[int, int]]
"""A tenant's candidate: its rank, larger first, and its arrival and id."""


class NaiveDeficits:
    """Deficits by the book: charges take from one tenant's, a refill adds a quantum to everyone's.

    Who joins has at most the largest deficit among the backlogged, or, with none, the smallest that the largest has
    been but for refills. Nobody is ever forgotten.
    """

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        self.deficit: dict[int, int] = {}
        self.offers: dict[int, Offer] = {}
        self.largest = 0
        self.refills = 0

    def note_largest(self) -> None:
        if self.offers:
            self.largest = max(self.deficit[t] for t in self.offers)

    def enter(self, tenant: int, offer: Offer) -> None:
        self.deficit[tenant] = min(self.deficit.get(tenant, self.largest), self.largest)
        self.offers[tenant] = offer
        self.note_largest()

    def leave(self, tenant: int) -> None:
        del self.offers[tenant]
        self.note_largest()

    def end_work(self, tenant: int) -> None:
        """The tenant has neither a queue nor running work left."""
        if not self.offers:
            self.largest = min(self.largest, self.deficit[tenant])

    def charge(self, tenant: int, cost: int) -> None:
        self.deficit[tenant] -= cost
        self.note_largest()

    def next(self) -> int | None:
        while self.offers and self.largest <= 0:
            self.refills += 1
            self.deficit = {t: q + self.quantum for t, q in self.deficit.items()}
            self.largest += self.quantum
        eligible = [t for t in self.offers if self.deficit[t] > 0]
        first = sorted(eligible, key=lambda t: (-self.offers[t][0], -self.deficit[t], self.offers[t][1]))
        return first[0] if first else None


class DeficitLedger(NaiveLedger):
    """A ledger that tells the deficits all that happens to it."""

    def __init__(self, quantum: int, max_idle: int | None = None) -> None:
        super().__init__(max_idle=max_idle)
        self.deficits = NaiveDeficits(quantum)

    def enter(self, tenant: int, weight: float, head: tuple[int, int]) -> None:
        super().enter(tenant, weight, head)
        self.deficits.enter(tenant, (0, head))

    def leave(self, tenant: int) -> None:
        self.deficits.leave(tenant)
        super().leave(tenant)

    def retire(self, tenant: int) -> None:
        if tenant not in self.heads and not self.running.get(tenant):
            self.deficits.end_work(tenant)
        known = set(self.counter)
        debts = self.lost_debt
        super().retire(tenant)
        if self.lost_debt != debts:  # dropped for want of memory, and not because it owes nothing
            for dropped in known - set(self.counter):
                del self.deficits.deficit[dropped]

    def charge(self, tenant: int, service: int) -> None:
        super().charge(tenant, service)
        self.deficits.charge(tenant, service * self.cost[tenant])


class NaiveLocalScheduler(NaiveScheduler):
    """Where locality counts: the head is found by matching every request of every tenant that has a deficit."""

    def __init__(self, spec: ModelSpec, config: Config) -> None:
        super().__init__(spec, config)
        assert config.locality_quantum_tokens is not None
        self.quantum = config.locality_quantum_tokens * UNIT
        self.local = [DeficitLedger(self.quantum) for _ in range(self.num_bands)]
        self.ledgers = list(self.local)
        self.oldest: dict[tuple[int, int], tuple[NaiveRequest, int]] = {}
        """By band and tenant: its oldest request, and what it had been served when that became so."""

    def note_oldest(self, band: int, tenant: int) -> None:
        requests = self.of_tenant(band, tenant)
        known = self.oldest.get((band, tenant))
        if not requests:
            self.oldest.pop((band, tenant), None)
        elif known is None or known[0] is not requests[0]:
            self.oldest[band, tenant] = requests[0], self.ledgers[band].counter[tenant]

    def enqueue(self, r: NaiveRequest) -> None:
        super().enqueue(r)
        self.note_oldest(r.band, r.tenant)

    def dequeue(self, r: NaiveRequest) -> None:
        super().dequeue(r)
        self.note_oldest(r.band, r.tenant)

    def dispatch(self, r: NaiveRequest, now: int) -> None:
        """The charge of what is dispatched is none that passed whoever is the oldest after it."""
        key = r.band, r.tenant
        before = self.oldest[key]
        super().dispatch(r, now)
        if key in self.oldest and self.oldest[key] is not before:
            del self.oldest[key]
            self.note_oldest(*key)

    def candidate(self, band: int, tenant: int) -> NaiveRequest:
        oldest, served = self.oldest[band, tenant]
        if self.ledgers[band].counter[tenant] - served >= self.quantum:
            return oldest
        return min(self.of_tenant(band, tenant), key=lambda r: (-len(self.hits(r)), r.key()))

    def head(self) -> NaiveRequest | None:
        for band, ledger in enumerate(self.local):
            if not ledger.heads:
                continue
            candidates = {t: self.candidate(band, t) for t in ledger.heads}
            deficits = ledger.deficits
            deficits.offers = {t: (len(self.hits(r)), r.key()) for t, r in candidates.items()}
            tenant = deficits.next()
            assert tenant is not None
            return candidates[tenant]
        return None
