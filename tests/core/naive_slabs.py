"""A block pool of slabs that come and go, in lists and O(n): what the core's is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

GRADES = 64
OLD_SHARE = 8
Contents = tuple[int, int]
"""The serial of the entry before, and the token."""


@dataclass
class NaiveEntry:
    """One entry of the index: its serial and its blocks, preferred first."""

    serial: int
    blocks: list[int] = field(default_factory=list)


class NaiveSlabPool:
    """FREE blocks of the fullest slab first, then CACHED ones, nearly in order of their release."""

    def __init__(self, num_slabs: int, per_slab: int) -> None:
        self.num_slabs, self.per_slab = num_slabs, per_slab
        self.present: set[int] = set()
        self.refs: dict[int, int] = {}
        self.free: list[int] = []
        """The one freed last stands last."""
        self.cached: list[tuple[int, int]] = []
        """(release, block), oldest first."""
        self.contents: dict[int, Contents] = {}
        self.entries: dict[Contents, NaiveEntry] = {}
        self.releases = 0
        self.clock = 0
        self.graded: dict[int, tuple[int, int]] = {}
        """By slab with FREE blocks: its grade, and when it came to it."""
        self.evicted_from: int | None = None
        self.draining: set[int] = set()
        self.kept_back: set[int] = set()
        """FREE blocks of slabs that drain."""

    def slab_of(self, block: int) -> int:
        return block // self.per_slab

    def blocks_of(self, slab: int) -> range:
        return range(slab * self.per_slab, (slab + 1) * self.per_slab)

    def available(self) -> int:
        return len(self.free) + len(self.cached)

    def active_in(self, slab: int) -> int:
        return sum(self.refs[b] > 0 for b in self.blocks_of(slab))

    def cached_in(self, slab: int) -> int:
        return sum(self.slab_of(b) == slab for _, b in self.cached)

    def regrade(self) -> None:
        """Notes which slabs changed their grade just now."""
        self.clock += 1
        for slab in range(self.num_slabs):
            count = sum(self.slab_of(b) == slab for b in self.free)
            grade = GRADES - 1 if count == self.per_slab else (count - 1) * (GRADES - 1) // self.per_slab
            if count == 0:
                self.graded.pop(slab, None)
            elif self.graded.get(slab, (-1, 0))[0] != grade:
                self.graded[slab] = (grade, self.clock)

    def order(self) -> list[int]:
        def rank(block: int) -> tuple[int, int, int]:
            grade, since = self.graded[self.slab_of(block)]
            return grade, -since, -self.free.index(block)

        return sorted(self.free, key=rank) + [b for _, b in self.cached]

    def add_slab(self, slab: int) -> None:
        self.present.add(slab)
        for block in reversed(self.blocks_of(slab)):
            self.refs[block] = 0
            self.free.append(block)
        self.regrade()

    def drain_slab(self, slab: int) -> None:
        self.draining.add(slab)
        for block in self.blocks_of(slab):
            if block in self.contents and self.refs[block] == 0:
                self.forget(block)
            if self.refs[block] == 0:
                self.kept_back.add(block)
        self.free = [b for b in self.free if self.slab_of(b) != slab]
        self.cached = [(r, b) for r, b in self.cached if self.slab_of(b) != slab]
        self.regrade()

    def remove_slab(self, slab: int) -> None:
        self.draining.discard(slab)
        self.kept_back -= set(self.blocks_of(slab))
        for block in self.blocks_of(slab):
            if block in self.contents:
                self.forget(block)
            del self.refs[block]
        self.free = [b for b in self.free if self.slab_of(b) != slab]
        self.cached = [(r, b) for r, b in self.cached if self.slab_of(b) != slab]
        self.present.remove(slab)
        self.regrade()

    def forget(self, block: int) -> None:
        contents = self.contents.pop(block)
        self.entries[contents].blocks.remove(block)
        if not self.entries[contents].blocks:
            del self.entries[contents]

    def victim(self) -> int:
        first = self.cached[0][0]
        same = [(r, b) for r, b in self.cached if self.slab_of(b) == self.evicted_from]
        if same and same[0][0] - first <= (self.releases - first) // OLD_SHARE:
            return same[0][1]
        self.evicted_from = self.slab_of(self.cached[0][1])
        return self.cached[0][1]

    def take(self) -> int:
        if self.free:
            block = self.order()[0]
            self.free.remove(block)
            self.regrade()
        else:
            block = self.victim() if self.num_slabs > 1 else self.cached[0][1]
            self.cached = [(r, b) for r, b in self.cached if b != block]
            self.forget(block)
        self.refs[block] = 1
        return block

    def find(self, parent: int, token: int) -> int | None:
        entry = self.entries.get((parent, token))
        return entry.blocks[0] if entry else None

    def prefer(self, block: int, place: int) -> None:
        """Moves a block to the front of its entry, or to the end."""
        blocks = self.entries[self.contents[block]].blocks
        blocks.remove(block)
        blocks.insert(place if place == 0 else len(blocks), block)

    def hold(self, block: int) -> None:
        self.refs[block] += 1
        if self.refs[block] == 1:
            self.cached = [(r, b) for r, b in self.cached if b != block]
            self.prefer(block, 0)

    def release(self, table: list[int]) -> None:
        self.releases += 1
        for block in reversed(table):
            self.refs[block] -= 1
            if self.refs[block] > 0:
                continue
            if self.slab_of(block) in self.draining:
                if block in self.contents:
                    self.forget(block)
                self.kept_back.add(block)
            elif block in self.contents:
                self.cached.append((self.releases, block))
                self.prefer(block, -1)
            else:
                self.free.append(block)
                self.regrade()

    def publish(self, block: int, parent: int, token: int, serial: int) -> None:
        entry = self.entries.setdefault((parent, token), NaiveEntry(serial))
        assert entry.serial == serial, "one entry per contents"
        entry.blocks.insert(0, block)
        self.contents[block] = (parent, token)
