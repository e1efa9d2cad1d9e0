"""Every kernel configuration that ships: what the compile gate checks is what a start on a GPU warms up.

A case calls one launcher on meta tensors; `variants` says what that compiles on an architecture. A kernel ships with
the configurations listed here and with no others: a new dtype, head dim or flag is a new case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ._variants import TARGETS, Expects, Variant, variants_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of a launcher as the engine makes it."""

    name: str
    launch: Callable[[], object]
    expects: Expects = field(default_factory=Expects)
    archs: tuple[str, ...] = tuple(TARGETS)
    # Part of the path of a Llama-3-8B shape in bf16: compiled by every test run.
    quick: bool = False


def cases() -> tuple[Case, ...]:
    return ()


def variants(arch: str, *, quick: bool = False) -> Iterator[Variant]:
    """What is compiled for `arch` (a key of `TARGETS`), each compiled form once; `quick` leaves the rest out."""
    seen = set()
    for case in cases():
        if arch not in case.archs or (quick and not case.quick):
            continue
        for variant in variants_of(arch, case.name, case.launch, case.expects):
            if variant.identity not in seen:
                seen.add(variant.identity)
                yield variant
