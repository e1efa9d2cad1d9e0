"""The limits of each architecture, and what a compiled kernel is found to break."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from airi.kernels.arch import ARCHS

from .machine import Measured

REGISTERS: Mapping[str, int] = {"gfx942": 512}
ASYNC_PRODUCTS = ("sm_90", "sm_100")
# A few byte reads are the compiler's own: the state of specialised warps, the book of tensor memory. Values unpacked
# one by one take at least sixteen per tile.
BYTE_READS = 4
# Of the bytes read wide, and so many more: lengths, the block table, offsets.
NARROW_SHARE = 0.5
NARROW_BYTES = 32


class Expected(Protocol):
    """`airi.kernels._variants.Expects`."""

    @property
    def tensor_cores(self) -> bool: ...
    @property
    def wgmma(self) -> bool: ...
    @property
    def wide_loads(self) -> bool: ...
    @property
    def scaled(self) -> bool: ...
    @property
    def narrow_tiles(self) -> int: ...
    @property
    def tiny_loads(self) -> int: ...
    @property
    def no_byte_reads(self) -> bool: ...


def findings(arch: str, expects: Expected, measured: Measured) -> Iterator[str]:
    """What is wrong, each as `what: found X, limit Y`; nothing when the kernel is good."""
    m = measured
    yield from _at_most("registers", m.registers, REGISTERS.get(arch, 255))
    yield from _at_most("bytes of spilled registers and stack", m.spilled_bytes, 0)
    yield from _at_most("loads and stores of spilled registers", m.local_accesses, 0)
    yield from _at_most("bytes of shared memory", m.shared_bytes, ARCHS[arch].max_shared)
    if expects.tensor_cores:
        yield from _at_least("matrix instructions", m.matrix_products, 1)
    if expects.wgmma and arch in ASYNC_PRODUCTS:
        yield from _at_least("asynchronous matrix instructions", m.async_products, 1)
    if expects.wide_loads and not m.tile_loads:
        yield from _at_least("bytes of 128-bit loads", m.wide_bytes, 1)
        if not expects.scaled:
            limit = int(m.wide_bytes * NARROW_SHARE) + NARROW_BYTES
            yield from _at_most("bytes of loads under 128 bits", m.narrow_bytes, limit)
        yield from _at_most("tiles loaded under 128 bits", m.narrow_tiles, expects.narrow_tiles)
        yield from _at_most("loads of one or two bytes", m.tiny_loads, expects.tiny_loads)
    if expects.no_byte_reads:
        yield from _at_most("byte reads of shared memory", m.byte_reads, BYTE_READS)


def _at_most(what: str, found: int, limit: int) -> Iterator[str]:
    if found > limit:
        yield f"{what}: found {found:,}, limit {limit:,}"


def _at_least(what: str, found: int, limit: int) -> Iterator[str]:
    if found < limit:
        yield f"{what}: found {found:,}, at least {limit:,} expected"
