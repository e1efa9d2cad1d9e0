"""Code for one instruction set stays out of the way of processors without it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

BUILDS = Path(__file__).parents[2] / "build"

# nm's marks of functions that the linker may share between objects (W, V, u): one that was compiled for AVX could end
# up in code for processors without it. An initialiser would run there as soon as the library is loaded.
SHARED = re.compile(r" [WVu] | _GLOBAL__")


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16"])
def test_kernels_of_one_instruction_set_share_no_function(isa: str) -> None:
    # The build that `pip install .` makes: sanitizers, in the other ones, add shared functions of their own.
    objects = sorted(BUILDS.glob(f"cp*/csrc/cpu/CMakeFiles/airi_cpu_{isa}.dir/*.o"))
    if not objects:
        pytest.skip(f"no objects for {isa} in build/cp*: `make install` on x86-64 makes them")
    listed = subprocess.run(["nm", *map(str, objects)], capture_output=True, text=True, check=True).stdout
    assert " t " in listed
    assert [line for line in listed.splitlines() if SHARED.search(line)] == []
