"""`python -m tests.kernels.gate_table`: prints what the table of what ships leaves out; one line each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from triton.runtime.jit import JITFunction

import airi.kernels
from airi.kernels import shipped
from airi.kernels._shapes import Batch

ODD = (Batch(1, 1), Batch(3, 7), Batch(17, 100), Batch(256, 8192))


def surprises(arch: str) -> Iterator[str]:
    """What steps of odd sizes compile beyond it."""
    for case in shipped.cases():
        if arch not in case.archs:
            continue
        known = {variant.identity for variant in shipped.case_variants(case, arch, case.sizes)}
        for batch in ODD:
            for variant in shipped.case_variants(case, arch, (batch,)):
                if variant.identity not in known:
                    yield f"{variant.name} on {arch}: {batch} compiles {variant.identity}"


def forgotten() -> Iterator[str]:
    """Kernels that no case launches."""
    listed = {variant.kernel for arch in ("sm_90", "gfx942") for variant in shipped.variants(arch)}
    for module in pkgutil.iter_modules(airi.kernels.__path__):
        members = vars(importlib.import_module(f"airi.kernels.{module.name}"))
        for name, member in members.items():
            if isinstance(member, JITFunction) and name.endswith("_kernel") and member not in listed:
                yield f"airi.kernels.{module.name}.{name} is launched by no case"


if __name__ == "__main__":
    for line in (*surprises("sm_90"), *surprises("gfx942"), *forgotten()):
        print(line)
