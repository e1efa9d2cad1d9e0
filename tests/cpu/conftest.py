"""Every test leaves the instruction set and the number of threads as it found them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airi._core import cpu


@pytest.fixture(autouse=True)
def _restore_cpu_settings() -> Iterator[None]:
    isa, threads = cpu.isa(), cpu.num_threads()
    yield
    cpu.set_isa(isa)
    cpu.set_num_threads(threads)


@pytest.fixture(params=cpu.supported_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this machine can run, made the active one."""
    name = str(request.param)
    cpu.set_isa(name)
    return name
