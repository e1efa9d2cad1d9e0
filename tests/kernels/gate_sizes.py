"""`python -m tests.kernels.gate_sizes`: prints what steps of odd sizes compile beyond what ships; one line each."""

from __future__ import annotations

from collections.abc import Iterator

from airi.kernels import shipped
from airi.kernels._shapes import Batch

ODD = (Batch(1, 1), Batch(3, 7), Batch(17, 100), Batch(256, 8192))


def surprises(arch: str) -> Iterator[str]:
    shipping = [case for case in shipped.cases() if arch in case.archs]
    for case in shipping:
        known = {variant.identity for variant in shipped.case_variants(case, arch, case.sizes)}
        for batch in ODD:
            for variant in shipped.case_variants(case, arch, (batch,)):
                if variant.identity not in known:
                    yield f"{variant.name} on {arch}: {batch} compiles {variant.identity}"


if __name__ == "__main__":
    for arch in ("sm_90", "gfx942"):
        for line in surprises(arch):
            print(line)
