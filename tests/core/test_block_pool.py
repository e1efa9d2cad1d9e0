"""B1-B8, H7: the block pool against a model of dicts and lists."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from airi import _core
from airi._core import parts

BLOCK_SIZE = 2
Tokens = tuple[int, int]
Path = tuple[Tokens, ...]
"""A block's contents and all of its past, root first: what its KV depends on."""

some_tokens = st.tuples(st.integers(0, 1), st.integers(0, 1))


def forged_hash(tokens: Tokens) -> tuple[int, int]:
    """Two hashes for all blocks there are: blocks collide with each other and so do their parents."""
    return sum(tokens) % 2, 0


@dataclass
class Entry:
    """What the index knows: one parent and tokens, one serial, the blocks that hold them."""

    serial: int
    blocks: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Table:
    """The blocks of one request; the first len(serials) of them are published."""

    blocks: list[int]
    path: Path
    serials: list[int]


class NaivePool:
    """The pool as scheduling.md tells it: counts, contents and one list in order of eviction."""

    def __init__(self, capacity: int) -> None:
        self.refs = dict.fromkeys(range(capacity), 0)
        self.entries: dict[tuple[int, Tokens], Entry] = {}
        self.key_of: dict[int, tuple[int, Tokens]] = {}
        self.path_of: dict[int, Path] = {}
        self.order = list(range(capacity))
        self.events: list[tuple[int, tuple[int, int]]] = []

    def forget(self, block: int) -> None:
        key = self.key_of.pop(block)
        del self.path_of[block]
        self.entries[key].blocks.remove(block)
        if not self.entries[key].blocks:
            del self.entries[key]
            self.tell(_core.KvEventKind.REMOVED, forged_hash(key[1]))

    def tell(self, kind: _core.KvEventKind, hash: tuple[int, int]) -> None:
        """An event where the first entry of a hash comes, or the last goes."""
        if not any(forged_hash(tokens) == hash for _, tokens in self.entries):
            self.events.append((kind, hash))

    def take(self, count: int) -> list[int] | None:
        if count > len(self.order):
            return None
        taken = [self.order.pop(0) for _ in range(count)]
        for block in taken:
            if block in self.key_of:
                self.forget(block)
            self.refs[block] = 1
        return taken

    def hold(self, block: int) -> None:
        if self.refs[block] == 0:
            self.order.remove(block)
        self.refs[block] += 1

    def release(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                self.order.insert(len(self.order) if block in self.key_of else 0, block)

    def publish(self, block: int, parent: int, path: Path, serial: int) -> None:
        key = (parent, path[-1])
        if key not in self.entries:
            self.tell(_core.KvEventKind.STORED, forged_hash(path[-1]))
        entry = self.entries.setdefault(key, Entry(serial))
        assert entry.serial == serial, "one entry per contents, one contents per entry"
        entry.blocks.append(block)
        self.key_of[block] = key
        self.path_of[block] = path

    def unpublish(self, block: int) -> None:
        if block in self.key_of:
            self.forget(block)


class PoolMachine(RuleBasedStateMachine):
    """Requests hit, take, fill and release; every answer and the order of eviction are compared."""

    tables = Bundle("tables")

    @initialize(capacity=st.integers(1, 9))
    def start(self, capacity: int) -> None:
        self.pool = parts.BlockPool(capacity, BLOCK_SIZE)
        self.ring = parts.KvEventRing(64)
        self.pool.send_events_to(self.ring, BLOCK_SIZE)
        self.cursor = 0
        self.told: set[tuple[int, int]] = set()
        self.naive = NaivePool(capacity)
        self.serials: set[int] = set()
        self.distrusted = False

    @rule(target=tables, prompt=st.lists(some_tokens, max_size=4), fresh=st.integers(0, 3))
    def admit(self, prompt: list[Tokens], fresh: int) -> object:
        table = Table([], (), [])
        for tokens in prompt:
            parent = table.serials[-1] if table.serials else 0
            entry = self.naive.entries.get((parent, tokens))
            hit = self.pool.find(parent, forged_hash(tokens), tokens)
            assert (hit is None) == (entry is None)
            if hit is None or entry is None:
                break
            block, serial = hit
            table.path = (*table.path, tokens)
            assert block in entry.blocks
            assert serial == entry.serial
            assert self.naive.path_of[block] == table.path, "H7: a hit of other contents"
            if any(self.naive.refs[b] > 0 for b in entry.blocks):
                assert self.naive.refs[block] > 0, "a hit prefers a block in use"
            table.blocks.append(block)
            table.serials.append(serial)
        if fresh + sum(self.naive.refs[b] == 0 for b in table.blocks) > len(self.naive.order):
            return multiple()
        for block in table.blocks:
            self.pool.hold(block)
            self.naive.hold(block)
        taken = self.pool.take(fresh)
        assert taken is not None
        assert taken == self.naive.take(fresh)
        table.blocks += taken
        return table

    @rule(count=st.integers(0, 10))
    def refuse_more_than_there_is(self, count: int) -> None:
        if count > len(self.naive.order):
            assert self.pool.take(count) is None

    @rule(table=tables, tokens=some_tokens)
    def fill(self, table: Table, tokens: Tokens) -> None:
        at = len(table.serials)
        if at >= len(table.blocks):
            return
        block = table.blocks[at]
        assert self.pool.is_writable(block), "B4"
        parent = table.serials[-1] if table.serials else 0
        serial = self.pool.publish(block, parent, forged_hash(tokens), tokens)
        if (parent, tokens) not in self.naive.entries:
            assert serial not in self.serials, "a serial is never used twice"
        self.serials.add(serial)
        table.path = (*table.path, tokens)
        table.serials.append(serial)
        self.naive.publish(block, parent, table.path, serial)
        assert not self.pool.is_writable(block)

    @rule(table=consumes(tables))
    def release(self, table: Table) -> None:
        self.pool.release(table.blocks)
        self.naive.release(table.blocks)

    @rule(table=consumes(tables), data=st.data())
    def distrust_and_release(self, table: Table, data: st.DataObject) -> None:
        self.distrusted = True
        for block in table.blocks[data.draw(st.integers(0, len(table.blocks))) :]:
            self.pool.unpublish(block)
            self.naive.unpublish(block)
        self.release(table)

    @invariant()
    def counts_contents_and_order_agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_invariants()
        naive = self.naive
        free = sum(r == 0 and b not in naive.key_of for b, r in naive.refs.items())
        cached = sum(r == 0 and b in naive.key_of for b, r in naive.refs.items())
        assert (self.pool.num_free, self.pool.num_cached) == (free, cached)
        assert self.pool.num_active == len(naive.refs) - free - cached
        assert self.pool.eviction_order() == naive.order
        assert [self.pool.ref_count(b) for b in naive.refs] == list(naive.refs.values())
        assert [self.pool.is_published(b) for b in naive.refs] == [b in naive.key_of for b in naive.refs]

    @invariant()
    def events_tell_which_hashes_there_are(self) -> None:
        if not hasattr(self, "pool"):
            return
        events, self.cursor, missed = self.ring.read(self.cursor)
        told = list(zip(events["kind"].tolist(), events["hash"].tolist(), strict=True))
        assert missed == 0
        assert told == self.naive.events
        self.naive.events.clear()
        for kind, hash in told:
            assert (hash in self.told) == (kind == _core.KvEventKind.REMOVED)
            self.told ^= {hash}
        assert self.told == {forged_hash(tokens) for _, tokens in self.naive.entries}
        stored = self.pool.stored_hashes()
        assert sorted(stored["hash"].tolist()) == sorted(self.told)

    @invariant()
    def no_descendant_is_orphaned_by_eviction(self) -> None:
        if not hasattr(self, "pool") or self.distrusted:
            return
        serials = {0, *(e.serial for e in self.naive.entries.values())}
        assert all(parent in serials for parent, _ in self.naive.entries)


TestPoolMachine = PoolMachine.TestCase


def filled(pool: parts.BlockPool, table: list[int], contents: list[int], parent: int = 0) -> int:
    for block, content in zip(table, contents, strict=True):
        parent = pool.publish(block, parent, (content, content), [content, content])
    return parent


def took(pool: parts.BlockPool, count: int) -> list[int]:
    taken = pool.take(count)
    assert taken is not None
    return taken


def test_of_one_chain_the_deeper_block_is_evicted_first_and_a_hit_renews_the_chain() -> None:
    pool = parts.BlockPool(4, BLOCK_SIZE)
    old, new = took(pool, 2), took(pool, 2)
    filled(pool, old, [1, 2])
    filled(pool, new, [3, 4])
    pool.release(old)
    pool.release(new)
    assert pool.eviction_order() == [old[1], old[0], new[1], new[0]]
    pool.hold(old[0])
    pool.release(old[:1])
    assert pool.eviction_order() == [old[1], new[1], new[0], old[0]]


def test_a_collision_of_parents_never_serves_the_childs_block() -> None:
    pool = parts.BlockPool(4, BLOCK_SIZE)
    same = (7, 7)
    first = took(pool, 2)
    parent = pool.publish(first[0], 0, same, [1, 1])
    pool.publish(first[1], parent, same, [9, 9])
    other = took(pool, 2)
    other_parent = pool.publish(other[0], 0, same, [2, 2])
    assert other_parent != parent
    assert pool.find(other_parent, same, [9, 9]) is None
    pool.publish(other[1], other_parent, same, [9, 9])
    hit, other_hit = pool.find(parent, same, [9, 9]), pool.find(other_parent, same, [9, 9])
    assert hit is not None
    assert other_hit is not None
    assert (hit[0], other_hit[0]) == (first[1], other[1])


def test_an_evicted_parent_computed_anew_does_not_adopt_the_old_children() -> None:
    pool = parts.BlockPool(3, BLOCK_SIZE)
    table = took(pool, 2)
    parent = pool.publish(table[0], 0, (1, 0), [1, 1])
    pool.publish(table[1], parent, (2, 0), [2, 2])
    pool.unpublish(table[0])
    again = took(pool, 1)
    new_parent = pool.publish(again[0], 0, (1, 0), [1, 1])
    assert new_parent != parent
    assert pool.find(new_parent, (2, 0), [2, 2]) is None


def test_extras_are_compared_and_not_only_hashed() -> None:
    pool = parts.BlockPool(2, BLOCK_SIZE)
    pool.publish(took(pool, 1)[0], 0, (1, 1), [1, 1], b"alice")
    assert pool.find(0, (1, 1), [1, 1], b"bob") is None
    assert pool.find(0, (1, 1), [1, 1]) is None
    assert pool.find(0, (1, 1), [1, 1], b"alice") is not None


def test_misuse_is_a_bug_of_the_caller_and_says_so() -> None:
    pool = parts.BlockPool(2, BLOCK_SIZE)
    block = took(pool, 1)[0]
    with pytest.raises(ValueError, match=r"block must lie in \[0, 2\), got 2"):
        pool.hold(2)
    with pytest.raises(
        ValueError, match=f"block {1 - block} is FREE: only ACTIVE and CACHED ones can be held"
    ):
        pool.hold(1 - block)
    pool.check_invariants()
    pool.publish(block, 0, (1, 1), [1, 1])
    with pytest.raises(_core.InternalError, match="published already"):
        pool.publish(block, 0, (1, 1), [1, 1])
    pool.release([block])
    with pytest.raises(_core.InternalError, match="released twice"):
        pool.release([block])
    with pytest.raises(_core.InternalError, match="not held"):
        pool.publish(1 - block, 0, (1, 1), [1, 1])
    with pytest.raises(ValueError, match="capacity must not be negative, got -1"):
        parts.BlockPool(-1, BLOCK_SIZE)
