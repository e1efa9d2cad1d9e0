"""The waiting requests of one model, once more: sorted anew whenever they are looked at."""

from __future__ import annotations

from .harness import Config
from .naive_parts import NaiveLedger
from .naive_request import NaiveRequest


class NaiveQueue:
    """Who waits, in order of decision."""

    def __init__(self, config: Config, num_bands: int) -> None:
        self.config = config
        self.num_bands = num_bands
        self.weights: dict[int, float] = {}
        self.ledgers = [NaiveLedger() for _ in range(num_bands)]
        self.waiting: list[NaiveRequest] = []

    def of_tenant(self, band: int, tenant: int) -> list[NaiveRequest]:
        return sorted((r for r in self.waiting if (r.band, r.tenant) == (band, tenant)), key=NaiveRequest.key)

    def enqueue(self, r: NaiveRequest) -> None:
        r.state = "waiting"
        self.waiting.append(r)
        ledger = self.ledgers[r.band]
        head = self.of_tenant(r.band, r.tenant)[0].key()
        if r.tenant in ledger.heads:
            ledger.heads[r.tenant] = head
        else:
            ledger.enter(r.tenant, self.weights.get(r.tenant, 1.0), head)

    def dequeue(self, r: NaiveRequest) -> None:
        self.waiting.remove(r)
        rest = self.of_tenant(r.band, r.tenant)
        if rest:
            self.ledgers[r.band].heads[r.tenant] = rest[0].key()
        else:
            self.ledgers[r.band].leave(r.tenant)

    def aged_band(self, r: NaiveRequest, waited: int) -> int:
        tau = self.config.aging_us
        return r.first_band if tau is None else max(0, r.first_band - max(waited, 0) // tau)

    def push(self, r: NaiveRequest, since: int) -> None:
        r.since = since
        r.band = self.aged_band(r, r.waited)
        if r.best_effort_until is not None and since < r.best_effort_until:
            r.band = self.config.num_bands
        self.enqueue(r)

    def promotion_due(self, r: NaiveRequest) -> int | None:
        if r.band > r.first_band:
            return r.best_effort_until
        tau = self.config.aging_us
        return None if tau is None or not r.band else r.since + (r.first_band - r.band + 1) * tau - r.waited

    def promote(self, now: int) -> None:
        while True:
            due = [
                (at, r.id, r) for r in self.waiting if (at := self.promotion_due(r)) is not None and at <= now
            ]
            if not due:
                return
            r = min(due)[2]
            self.dequeue(r)
            r.band = self.aged_band(r, r.waited + now - r.since)
            self.enqueue(r)

    def in_order(self, band: int) -> list[NaiveRequest]:
        return [r for t in self.ledgers[band].order() for r in self.of_tenant(band, t)]

    def head(self) -> NaiveRequest | None:
        return next((self.in_order(b)[0] for b in range(self.num_bands) if self.ledgers[b].heads), None)
