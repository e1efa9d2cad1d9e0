"""Copies of blocks in a host tier and on a disk, once more in lists and dicts: what TierCache is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

from airi._core import MemoryOpKind
from airi._core.parts import TierSource, TransferEnd

Op = tuple[MemoryOpKind, int, int, int, int]
MOST_SPILLS = 64


@dataclass(eq=False)
class Copy:
    """What a slot holds. Without an entry it is an orphan, free once nothing is busy with it."""

    slot: int
    entry: int | None
    ready: bool = False
    readers: int = 0
    pins: int = 0

    def idle(self) -> bool:
        return self.ready and not self.readers and not self.pins and self.entry is not None


class NaiveTier:
    """One tier: a stack of free slots, and the copies in order of use."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = list(range(size - 1, -1, -1))
        self.copies: list[Copy] = []

    def of(self, entry: int) -> Copy | None:
        return next((c for c in self.copies if c.entry == entry), None)

    def idle(self) -> list[Copy]:
        return [c for c in self.copies if c.idle()]

    def begin_write(self, entry: int) -> Copy | None:
        if not self.free:
            return None
        self.copies.append(Copy(self.free.pop(), entry))
        return self.copies[-1]

    def settle(self, copy: Copy) -> None:
        """Something that kept the copy busy has ended."""
        self.copies.remove(copy)
        if copy.entry is None and copy.ready and not copy.readers:
            self.free.append(copy.slot)
        else:
            self.copies.append(copy)

    def drop(self, copy: Copy) -> None:
        copy.entry, copy.pins = None, 0
        if copy.ready and not copy.readers:
            self.settle(copy)


@dataclass(eq=False)
class NaiveTransfer:
    """A transfer that has begun."""

    kind: MemoryOpKind
    host: Copy
    disk: Copy | None = None


@dataclass
class NaiveTiers:
    """TierCache as scheduling.md tells it."""

    host_slots: int
    disk_slots: int
    granules: int
    store_on_reuse: int
    room: int = 0
    step: list[Op] = field(default_factory=list)
    waiting: list[Op] = field(default_factory=list)
    pending: dict[int, NaiveTransfer] = field(default_factory=dict)
    reuses: dict[int, int] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    last_id: int = 0
    window: int = MOST_SPILLS

    def __post_init__(self) -> None:
        self.host = NaiveTier(self.host_slots)
        self.disk = NaiveTier(self.disk_slots)

    def begin_step(self, capacity: int) -> None:
        self.room = capacity
        self.step, self.waiting = self.waiting[:capacity], self.waiting[capacity:]

    def has_room(self) -> bool:
        return len(self.step) < self.room

    def begin(self, kind: MemoryOpKind, source: int, to: int, host: Copy, disk: Copy | None = None) -> int:
        self.last_id += 1
        self.pending[self.last_id] = NaiveTransfer(kind, host, disk)
        op = (kind, self.last_id, source * self.granules, to * self.granules, self.granules)
        (self.step if self.has_room() and not self.waiting else self.waiting).append(op)
        return self.last_id

    def source(self, entry: int) -> TierSource:
        host, disk = self.host.of(entry), self.disk.of(entry)
        if host and host.ready:
            return TierSource.HOST
        if not disk or not disk.ready:
            return TierSource.NONE
        return TierSource.ARRIVING if host else TierSource.DISK

    def keeps(self, entry: int) -> bool:
        return self.host.of(entry) is not None or self.disk.of(entry) is not None

    def drop(self, tier: NaiveTier, entry: int) -> None:
        copy = tier.of(entry)
        if copy is None:
            return
        tier.drop(copy)
        if not self.keeps(entry):
            self.reuses[entry] = 0
            self.lost.append(entry)

    def forget(self, entry: int) -> None:
        self.drop(self.host, entry)
        self.drop(self.disk, entry)
        self.reuses[entry] = 0

    def take(self, tier: NaiveTier, entry: int) -> Copy | None:
        if not tier.free and tier.idle():
            oldest = tier.idle()[0].entry
            assert oldest is not None
            self.drop(tier, oldest)
        return tier.begin_write(entry)

    def store(self, entry: int, block: int) -> bool:
        known = self.host.of(entry)
        if known:
            if known.idle():
                self.host.settle(known)
            return True
        copy = self.take(self.host, entry) if self.has_room() else None
        if copy is None:
            return False
        self.begin(MemoryOpKind.STORE, block, copy.slot, copy)
        return True

    def on_reuse(self, entry: int, block: int) -> None:
        if self.reuses.get(entry, 0) < self.store_on_reuse:
            self.reuses[entry] = self.reuses.get(entry, 0) + 1
            if self.reuses[entry] == self.store_on_reuse:
                self.store(entry, block)

    def load(self, entry: int, block: int) -> int:
        copy = self.host.of(entry)
        assert copy
        copy.readers += 1
        return self.begin(MemoryOpKind.LOAD, copy.slot, block, copy)

    def fetch(self, entry: int) -> int | None:
        disk = self.disk.of(entry)
        assert disk
        disk.readers += 1
        copy = self.take(self.host, entry)
        if copy is None:
            disk.readers -= 1
            self.disk.settle(disk)
            return None
        return self.begin(MemoryOpKind.FETCH, disk.slot, copy.slot, copy, disk)

    def spill_oldest(self) -> None:
        if not self.disk_slots:
            return
        wanted = min(-(-self.host_slots // 8), self.window) - len(self.host.free)
        spills = self.window - sum(t.kind == MemoryOpKind.SPILL for t in self.pending.values())
        for copy in self.host.idle()[: max(wanted, 0)]:
            entry = copy.entry
            assert entry is not None
            if self.disk.of(entry):
                continue
            if spills <= 0 or not self.has_room():
                return
            spills -= 1
            disk = self.take(self.disk, entry)
            if disk is None:
                return
            copy.readers += 1
            self.begin(MemoryOpKind.SPILL, copy.slot, disk.slot, copy, disk)

    def complete(self, transfer: int, end: TransferEnd) -> bool:
        done = self.pending.pop(transfer)
        ok = end == TransferEnd.DONE
        entry = done.host.entry
        disk_entry = done.disk.entry if done.disk else None
        if done.kind in (MemoryOpKind.STORE, MemoryOpKind.FETCH):
            done.host.ready = True
            bad = not ok
        else:
            done.host.readers -= 1
            bad = done.kind == MemoryOpKind.LOAD and end == TransferEnd.FAILED
        self.host.settle(done.host)
        if entry is not None and bad:
            self.drop(self.host, entry)
        if done.kind == MemoryOpKind.FETCH and done.disk:
            done.disk.readers -= 1
            self.disk.settle(done.disk)
            if disk_entry is not None and end == TransferEnd.FAILED:
                self.drop(self.disk, disk_entry)
        if done.kind == MemoryOpKind.SPILL and done.disk:
            if done.host.idle():
                self.host.copies.remove(done.host)
                self.host.copies.insert(0, done.host)
            done.disk.ready = True
            self.disk.settle(done.disk)
            if disk_entry is not None and not ok:
                self.drop(self.disk, disk_entry)
            self.window = min(2 * self.window, MOST_SPILLS) if ok else max(self.window // 2, 1)
        return ok and entry is not None
