"""H1, H2, H4: what the hash of a block depends on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airi._core import parts
from airi._core.parts import ExtraKind

KEY = bytes(range(16))
Extras = list[tuple[ExtraKind, int, bytes]]

tokens_lists = st.lists(st.integers(0, 2**31 - 1), min_size=0, max_size=40)
extras_lists = st.lists(
    st.tuples(st.sampled_from(list(ExtraKind)), st.integers(0, 40), st.binary(max_size=70)), max_size=3
)


def chain(block_size: int = 4, key: bytes = KEY, seed: bytes = b"model") -> parts.HashChain:
    return parts.HashChain(key, seed, block_size)


@given(tokens_lists, extras_lists, st.integers(1, 9))
def test_equal_prefixes_have_equal_hashes(tokens: list[int], extras: Extras, block_size: int) -> None:
    hashes = chain(block_size).hashes(tokens, extras)
    assert len(hashes) == len(tokens) // block_size
    for cut in range(len(tokens)):
        assert chain(block_size).hashes(tokens[:cut], extras) == hashes[: cut // block_size]


@given(tokens_lists.filter(bool), st.data())
def test_a_difference_in_a_block_changes_its_hash_and_every_later_one(
    tokens: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(tokens) - 1))
    other = list(tokens)
    other[at] ^= data.draw(st.integers(1, 2**31 - 1))
    a, b = chain().hashes(tokens), chain().hashes(other)
    assert a[: at // 4] == b[: at // 4]
    assert all(x != y for x, y in zip(a[at // 4 :], b[at // 4 :], strict=True))


def test_every_token_position_of_a_block_counts_whatever_its_size() -> None:
    for block_size in range(1, 35):
        base = list(range(1, block_size + 1))
        seen = {chain(block_size).hashes(base)[0]}
        for at in range(block_size):
            for bit in (0, 15, 30):
                other = list(base)
                other[at] ^= 1 << bit
                seen.add(chain(block_size).hashes(other)[0])
        assert len(seen) == 1 + 3 * block_size


def test_key_seed_and_block_size_each_change_every_hash() -> None:
    tokens = list(range(16))
    variants = [
        chain().hashes(tokens)[0],
        chain(key=bytes(16)).hashes(tokens)[0],
        chain(seed=b"model2").hashes(tokens)[0],
        chain(seed=b"").hashes(tokens)[0],
        chain(seed=b"m" * 64).hashes(tokens)[0],
        chain(seed=b"m" * 65).hashes(tokens)[0],
        chain(block_size=8).hashes(tokens)[0],
    ]
    assert len(set(variants)) == len(variants)
    assert len({v[0] for v in variants}) == len({v[1] for v in variants}) == len(variants)


@given(extras_lists, extras_lists)
def test_the_encoding_of_extras_is_injective(a: Extras, b: Extras) -> None:
    tokens = list(range(44))

    def by_block(extras: Extras) -> list[list[tuple[ExtraKind, int, bytes]]]:
        return [[e for e in extras if e[1] // 4 == i] for i in range(11)]

    hashes_a, hashes_b = chain().hashes(tokens, a), chain().hashes(tokens, b)
    first = next((i for i in range(11) if by_block(a)[i] != by_block(b)[i]), 11)
    assert hashes_a[:first] == hashes_b[:first]
    assert all(x != y for x, y in zip(hashes_a[first:], hashes_b[first:], strict=True))


def test_an_adapter_is_not_a_salt_of_the_same_bytes_and_bytes_do_not_run_together() -> None:
    def one(*extras: tuple[ExtraKind, int, bytes]) -> tuple[int, int]:
        return chain().hashes([1, 2, 3, 4], list(extras))[0]

    adapter, salt = ExtraKind.ADAPTER, ExtraKind.SALT
    seen = [
        one(),
        one((adapter, 0, b"x")),
        one((salt, 0, b"x")),
        one((salt, 1, b"x")),
        one((salt, 0, b"")),
        one((salt, 0, b"ab"), (salt, 0, b"c")),
        one((salt, 0, b"a"), (salt, 0, b"bc")),
        one((salt, 0, b"abc")),
    ]
    assert len(set(seen)) == len(seen)


MASK = 2**64 - 1


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def naive_keys(key: bytes, count: int) -> list[int]:
    a, b = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    keys = []
    for _ in range(count):
        a = mix((a + 0x9E3779B97F4A7C15) & MASK)
        b = mix(b ^ ((a << 32 | a >> 32) & MASK))
        keys.append((a + b) & MASK)
    return keys


def naive_sum(keys: list[int], words: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Two rows of keyed products modulo 2^128; `words` maps positions to pairs of words."""
    halves = []
    for shift, odd in ((0, 0x9E3779B97F4A7C15), (2, 0xD6E8FEB86659FD93)):
        total = sum(
            ((a + keys[at + shift]) & MASK) * ((b + keys[at + shift + 1]) & MASK)
            for at, (a, b) in words.items()
        )
        total %= 2**128
        halves.append(mix(((total & MASK) + (total >> 64) * odd) & MASK))
    return halves[0], halves[1]


def naive_bytes(keys: list[int], data: bytes) -> tuple[int, int]:
    state = (len(data), 0)
    for start in range(0, max(len(data), 1), 64):
        chunk = data[start : start + 64].ljust(64, b"\0")
        parts_of = [int.from_bytes(chunk[i : i + 8], "little") for i in range(0, 64, 8)]
        words = {2 + i: (parts_of[i], parts_of[i + 1]) for i in range(0, 8, 2)}
        state = naive_sum(keys, {**words, 0: state})
    return state


def naive_block(
    keys: list[int], parent: tuple[int, int], tokens: list[int], extras: bytes
) -> tuple[int, int]:
    padded = tokens + [0] * (-len(tokens) % 4)
    pairs = [padded[i] | padded[i + 1] << 32 for i in range(0, len(padded), 2)]
    words = {4 + i: (pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2)}
    if extras:
        words[2] = naive_bytes(keys, extras)
    return naive_sum(keys, {**words, 0: parent})


def encode(extras: Extras, block: int, block_size: int) -> bytes:
    own = [e for e in extras if e[1] // block_size == block]
    return b"".join(
        bytes([kind]) + offset.to_bytes(8, "little") + len(data).to_bytes(8, "little") + data
        for kind, offset, data in own
    )


@given(
    tokens_lists,
    extras_lists,
    st.integers(1, 20),
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=70),
)
def test_the_bits_are_those_of_the_formula_on_every_machine(
    tokens: list[int], extras: Extras, block_size: int, key: bytes, seed: bytes
) -> None:
    keys = naive_keys(key, 64)
    state = naive_bytes(keys, block_size.to_bytes(8, "little") + seed)
    made = parts.HashChain(key, seed, block_size)
    assert made.root == state
    expected = []
    for i in range(len(tokens) // block_size):
        block = tokens[i * block_size : (i + 1) * block_size]
        state = naive_block(keys, state, block, encode(extras, i, block_size))
        expected.append(state)
    assert made.hashes(tokens, extras) == expected
