"""What ships: one compiled form of a kernel, and how the forms that a launcher asks for are written down.

A launcher is called on meta tensors for an architecture that need not be present; each kernel launch on the way is
written down instead of compiled: signature, constants, divisibility, warps and stages exactly as that launcher would
have them compiled on such a device. That is what the compile gate compiles, so it cannot drift from what launchers do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from .arch import ARCHS, assumed

# Compile options that launchers may set; what they leave out is the compiler's own.
OPTIONS = (
    "num_warps",
    "num_stages",
    "num_ctas",
    "maxnreg",
    "enable_fp_fusion",
    "launch_pdl",
    "waves_per_eu",
    "matrix_instr_nonkdim",
)

# The architectures as the compiler names them.
TARGETS: Mapping[str, GPUTarget] = {
    name: GPUTarget("hip", name, 64) if arch.is_amd else GPUTarget("cuda", int(name[3:]), 32)
    for name, arch in ARCHS.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expects:
    """What a variant's machine code must show beside the limits that hold for all (no spill, enough shared memory)."""

    # The matrix unit is used: HMMA and its kin, mfma on AMD.
    tensor_cores: bool = False
    # On sm_90 the products are asynchronous ones (HGMMA).
    wgmma: bool = False
    # Global memory is read 128 bits at a time; what is narrower (block table, lengths) is under half the bytes.
    wide_loads: bool = False
    # Scales, 4 bytes a token, are read too; every thread may read many: whole tiles are still read wide.
    scaled: bool = False
    # Tiles that may be read narrow, and loads that may be of one or two bytes: those of the few queries of an item.
    narrow_tiles: int = 0
    tiny_loads: int = 0
    # Shared memory is never read a byte at a time: the mark of fp8 values unpacked one by one.
    no_byte_reads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form in which a kernel is compiled for `arch`."""

    name: str
    arch: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[tuple[int, ...], Any]
    # Argument -> facts about it: [["tt.divisibility", 16]].
    attrs: Mapping[tuple[int, ...], list[list[Any]]]
    options: Mapping[str, Any] = field(default_factory=dict)
    expects: Expects = field(default_factory=Expects)

    @property
    def num_warps(self) -> int:
        return int(self.options["num_warps"])

    @property
    def num_stages(self) -> int:
        return int(self.options["num_stages"])

    @property
    def identity(self) -> str:
        """Equal for two variants that compile to the same code."""
        return repr((self.arch, self.kernel, self.signature, self.constexprs, self.attrs, self.options))

    def compile(self) -> Any:
        """Triton's compiled kernel (`.asm`, `.metadata`); from its cache on disk where it holds one."""
        source = ASTSource(
            fn=self.kernel,
            signature=dict(self.signature),
            constexprs=dict(self.constexprs),
            attrs=dict(self.attrs),
        )
        return triton.compile(source, target=TARGETS[self.arch], options=dict(self.options))


class _AbsentDevice:
    """Stands in for Triton's driver where no device is; knows the architecture and nothing else."""

    def __init__(self, arch: str) -> None:
        self._target = TARGETS[arch]
        # Triton keeps one compiler backend per device number: one number per architecture.
        self._index = 1000 + list(TARGETS).index(arch)

    def get_current_device(self) -> int:
        return self._index

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


# What a launch is compiled from, as Triton's cache hook is told it: signature, constants, attributes, options.
_Launch = tuple[Any, dict[str, Any]]


@contextmanager
def _recording(arch: str, seen: list[_Launch]) -> Iterator[None]:
    """Inside, a launch appends itself to `seen` and compiles nothing."""

    def write_down(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        seen.append((fn.jit_function, compile))
        return True

    before_hook, before_driver = knobs.runtime.jit_cache_hook, driver._active
    knobs.runtime.jit_cache_hook = write_down
    driver.set_active(_AbsentDevice(arch))
    try:
        with assumed(ARCHS[arch]):
            yield
    finally:
        knobs.runtime.jit_cache_hook = before_hook
        driver._active = before_driver


def variants_of(
    arch: str, name: str, launch: Callable[[], object], expects: Expects | None = None
) -> list[Variant]:
    """The kernels that `launch` launches on a device of `arch`, in order, each named `name/<kernel>`.

    `launch` calls a launcher on meta tensors. Raises RuntimeError under TRITON_INTERPRET=1, where kernels are not
    compiled at all, and when `launch` launches nothing.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("variants are written down in a process without TRITON_INTERPRET=1")
    seen: list[_Launch] = []
    with _recording(arch, seen):
        launch()
    if not seen:
        raise RuntimeError(f"{name}: its launcher launched no kernel on {arch}")
    return [_variant(arch, name, expects or Expects(), kernel, source) for kernel, source in seen]


def _variant(arch: str, name: str, expects: Expects, kernel: Any, source: dict[str, Any]) -> Variant:
    options = json.loads(source["specialization_data"])["options"]
    return Variant(
        name=f"{name}/{kernel.fn.__name__.strip('_')}",
        arch=arch,
        kernel=kernel,
        signature=source["signature"],
        constexprs=source["constants"],
        attrs=source["configs"][0],
        options={key: options[key] for key in OPTIONS if options.get(key) is not None},
        expects=expects,
    )
