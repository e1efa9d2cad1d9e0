"""The architectures that kernels are tuned for, as far as choosing tiles needs to know them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One architecture. Tile choices are functions of it, so that they are tested without a device."""

    name: str
    """As compilers call it: "sm_90", "gfx942"."""
    max_shared: int
    """Bytes of shared memory that one program may have."""
    num_sms: int
    """Multiprocessors, or compute units."""
    has_fp8: bool
    """Whether it converts float8_e4m3fn itself; where not, kernels do so in integers."""
    has_tma: bool = False
    """Whether tensor descriptors are loads of their own (Hopper and later)."""

    @property
    def is_amd(self) -> bool:
        """Whether this is ROCm."""
        return self.name.startswith("gfx")

    @property
    def lanes(self) -> int:
        """Threads of a warp."""
        return 64 if self.is_amd else 32


ARCHS = {
    arch.name: arch
    for arch in (
        Arch(name="sm_80", max_shared=163 * 1024, num_sms=108, has_fp8=False),
        Arch(name="sm_86", max_shared=99 * 1024, num_sms=84, has_fp8=False),
        Arch(name="sm_89", max_shared=99 * 1024, num_sms=142, has_fp8=True),
        Arch(name="sm_90", max_shared=227 * 1024, num_sms=132, has_fp8=True, has_tma=True),
        Arch(name="sm_100", max_shared=227 * 1024, num_sms=148, has_fp8=True, has_tma=True),
        Arch(name="gfx942", max_shared=64 * 1024, num_sms=304, has_fp8=False),
    )
}
"""By name; the number of multiprocessors is that of the largest product and read from a device where there is one."""


_assumed: ContextVar[Arch] = ContextVar("_assumed", default=ARCHS["sm_90"])


@contextmanager
def assumed(arch: Arch) -> Iterator[None]:
    """Inside, meta tensors count as those of a device of `arch`: what a launcher would compile there is asked so."""
    token = _assumed.set(arch)
    try:
        yield
    finally:
        _assumed.reset(token)


def arch_of(device: torch.device) -> Arch:
    """What a device is: the nearest architecture at or below it; sm_90 for a CPU, where Triton interprets.

    Raises ValueError for one that is older than all of them.
    """
    return _assumed.get() if device.type == "meta" else _arch_of(device)


@functools.cache
def _arch_of(device: torch.device) -> Arch:
    if device.type == "cpu":
        return ARCHS["sm_90"]
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        found = properties.gcnArchName.split(":")[0]
        if found not in ARCHS:
            raise ValueError(f"device is {properties.name} ({found}), accepted is {', '.join(ARCHS)}")
        return replace(ARCHS[found], num_sms=properties.multi_processor_count)
    capability = 10 * properties.major + properties.minor
    older = [int(name[3:]) for name in ARCHS if name.startswith("sm_") and int(name[3:]) <= capability]
    if not older:
        raise ValueError(f"device is {properties.name} (sm_{capability}), accepted is sm_80 and later")
    return replace(ARCHS[f"sm_{max(older)}"], num_sms=properties.multi_processor_count)
