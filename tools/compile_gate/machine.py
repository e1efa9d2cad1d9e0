"""What the machine code of a compiled kernel shows: registers, spills, shared memory, widths of loads, matrix units."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDE = 16  # bytes of the widest load that both vendors have on every architecture here

_SASS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_SASS_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_AMDGCN = re.compile(r"^\s+([a-z][a-z0-9_]+)\b", re.MULTILINE)
_AMDGCN_LOAD = re.compile(r"(?:global|buffer|flat)_load_(?:lds_)?[us]?(byte|short|dwordx[234]|dword)")
_AMDGCN_WIDTHS = {"byte": 1, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Counts are of instructions in the code, not of executions; bytes are per thread and per instruction."""

    registers: int
    spilled_bytes: int
    local_accesses: int
    shared_bytes: int
    matrix_products: int
    # Those of a whole warp group, asynchronous: HGMMA on sm_90, tcgen05 on sm_100.
    async_products: int
    tile_loads: int  # by the tensor memory accelerator
    wide_bytes: int
    narrow_bytes: int
    # Global loads of one or two bytes.
    tiny_loads: int
    byte_reads: int  # from shared memory
    # Loads of tiles with two dimensions of which a thread takes less than 16 bytes at a time, in Triton's own form.
    narrow_tiles: int


def measure(kernel: Any) -> Measured:
    """Reads what `Variant.compile()` returned; what was read once is kept beside Triton's compiled kernels."""
    cache = os.environ.get("TRITON_CACHE_DIR")
    if cache is None:
        return _measure(kernel)
    reader = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    path = Path(cache) / "measured" / reader / f"{kernel.hash}.json"
    if path.exists():
        return Measured(**json.loads(path.read_text()))
    measured = _measure(kernel)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Put in place whole: other processes may read it.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(dataclasses.asdict(measured), file)
    os.replace(file.name, path)
    return measured


def _measure(kernel: Any) -> Measured:
    tiles, shared = _narrow_tiles(kernel.asm["ttgir"]), kernel.metadata.shared
    if "amdgcn" in kernel.asm:
        return _measure_amdgcn(kernel.asm["amdgcn"], shared, tiles)
    return _measure_sass(*_disassemble(kernel.asm["cubin"]), shared, tiles)


def _disassemble(cubin: bytes) -> tuple[str, str]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        outputs = [
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "-sass")
        ]
    return outputs[0], outputs[1]


def _narrow_tiles(ttgir: str) -> int:
    # Of "[1, 8]" along the order "[1, 0]", a thread takes 8 neighbours. Other layouts than blocked ones come later.
    layouts = re.findall(
        r"^(#\w+) = #ttg\.blocked<\{sizePerThread = \[(.*?)\].*order = \[(\d)", ttgir, re.MULTILINE
    )
    neighbours = {name: int(sizes.split(", ")[int(order)]) for name, sizes, order in layouts}
    loads = re.findall(
        r"(?:tt\.load|async_copy_global_to_local|buffer_load)\b.*?"
        r"tensor<\d+x\d+x(?:!tt\.ptr<)?[a-z]+(\d+)\w*>?, (#\w+)>",
        ttgir,
    )
    return sum(neighbours.get(layout, WIDE) * int(bits) // 8 < WIDE for bits, layout in loads)


def _measure_sass(usage: str, sass: str, shared_bytes: int, narrow_tiles: int) -> Measured:
    """From cuobjdump's two outputs; `shared_bytes` is what a launch asks for."""
    opcodes = Counter(_SASS.findall(sass))
    widths = Counter[int]()
    for opcode, count in opcodes.items():
        name, *modifiers = opcode.split(".")
        if name in ("LDG", "LDGSTS", "LD"):
            widths[next((_SASS_WIDTHS[m] for m in modifiers if m in _SASS_WIDTHS), 4)] += count
    return Measured(
        registers=_most(usage, r"\bREG:(\d+)"),
        spilled_bytes=_most(usage, r"\bSTACK:(\d+)") + _most(usage, r"\bLOCAL:(\d+)"),
        local_accesses=_count(opcodes, r"(STL|LDL)\b"),
        shared_bytes=shared_bytes,
        matrix_products=_count(opcodes, r"(HMMA|IMMA|QMMA|HGMMA|IGMMA|QGMMA|UTC\wMMA)\b"),
        async_products=_count(opcodes, r"([HIQ]GMMA|UTC\wMMA)\b"),
        tile_loads=_count(opcodes, r"(UTMALDG|UBLKCP)\b"),
        byte_reads=_count(opcodes, r"LDS\.[US]8\b"),
        narrow_tiles=narrow_tiles,
        **_split(widths),
    )


def _measure_amdgcn(assembly: str, shared_bytes: int, narrow_tiles: int) -> Measured:
    opcodes = Counter(_AMDGCN.findall(assembly))
    widths = Counter[int]()
    for opcode, count in opcodes.items():
        if match := _AMDGCN_LOAD.match(opcode):
            widths[_AMDGCN_WIDTHS[match[1]]] += count
    # Scalar registers spill into lanes of vector registers, which are counted, or else show in the segment below.
    spilled = _most(assembly, r"\.vgpr_spill_count:\s+(\d+)")
    static = _most(assembly, r"\.group_segment_fixed_size:\s+(\d+)")
    return Measured(
        registers=_most(assembly, r"\.vgpr_count:\s+(\d+)"),
        spilled_bytes=4 * spilled + _most(assembly, r"\.private_segment_fixed_size:\s+(\d+)"),
        local_accesses=_count(opcodes, "scratch_(load|store)"),
        shared_bytes=max(shared_bytes, static),
        matrix_products=_count(opcodes, "v_s?mfma"),
        async_products=0,
        tile_loads=0,
        byte_reads=_count(opcodes, "ds_read_[ui]8"),
        narrow_tiles=narrow_tiles,
        **_split(widths),
    )


def _split(widths: Counter[int]) -> dict[str, int]:
    return {
        "wide_bytes": sum(width * count for width, count in widths.items() if width >= WIDE),
        "narrow_bytes": sum(width * count for width, count in widths.items() if width < WIDE),
        "tiny_loads": widths[1] + widths[2],
    }


def _count(opcodes: Counter[str], pattern: str) -> int:
    return sum(count for opcode, count in opcodes.items() if re.match(pattern, opcode))


def _most(text: str, pattern: str) -> int:
    found: Iterable[str] = re.findall(pattern, text)
    return max(map(int, found), default=0)
