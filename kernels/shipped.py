"""Every kernel configuration that ships: what the compile gate checks is what a start on a GPU warms up.

A case calls one launcher on meta tensors; `variants` says what that compiles on an architecture. Each value that a
kernel is compiled for (head dim, group, dtype, window, soft cap, block size) is in a case here or does not ship.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from . import _calls
from ._shapes import FP8, FP16, FP32, FULL, INT8, KEPT, LLAMA, MODELS, Batch, Shape
from ._variants import TARGETS, Expects, Variant, variants_of
from .arch import ARCHS
from .expert_plan import TILE_ROWS

# Steps that decode and steps with chunks of prompts; few rows and many; a size where none matters.
SIZES = (Batch(rows=32, tokens=32), Batch(rows=32, tokens=2048))
ROWS = (Batch(rows=32, tokens=32), Batch(rows=256, tokens=256), Batch(rows=1024, tokens=1024))
ONE = (Batch(rows=32, tokens=512),)
# Rows of models: the lengths that norms and activations are compiled for, from the smallest to the largest.
HIDDEN = (512, 896, 2560, 4096, 5120, 8192, 16384)
WIDTHS = ((1536, "silu"), (4864, "silu"), (14336, "silu"), (28672, "silu"), (10240, "gelu_tanh"))
# Vocabularies: a few chunks and many.
VOCABS = (32000, 128256, 151936, 262208)
BF16 = torch.bfloat16
# Experts, choices per token, hidden size and inner size.
EXPERTS = {"mixtral-8x7b": (8, 2, 4096, 14336), "qwen-3-30b-a3b": (128, 8, 2048, 768)}
# Their keys and values are written by code that differs from another shape's in numbers of heads or tokens alone.
SAME_WRITE = {
    *("llama-3-70b", "qwen-2.5-14b", "qwen-2-7b", "mistral-7b", "tinyllama", "gemma-2-9b"),
    *(f"corner {kind}" for kind in ("d64", "d96", "d128", "d128 window", "d256", "d256 window")),
    *("blocks of 16", "blocks of 32", "blocks of 128", "fp16 d256", "fp8 window", "int8 d64", "int8 d256"),
    *("fp8 corner d64", "fp8 corner d128", "fp32 d64"),
    *(f"fp32 corner {kind}" for kind in ("d64", "d96", "d128", "d256")),
}
WIDE = Expects(wide_loads=True)
SCALED = Expects(wide_loads=True, scaled=True)
DECODE = Expects(tensor_cores=True, wide_loads=True, narrow_tiles=1)
PREFILL = Expects(tensor_cores=True, wgmma=True, wide_loads=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of a launcher, as the engine makes it for a step of some size."""

    name: str
    launch: Callable[[Batch], object]
    # Of its first kernel; and of those that it launches behind it.
    expects: Expects = field(default_factory=Expects)
    behind: Expects = field(default_factory=Expects)
    archs: tuple[str, ...] = tuple(TARGETS)
    # Part of the path of a Llama-3-8B shape in bfloat16: compiled by every test run.
    quick: bool = False
    # Those that compile it differently.
    sizes: tuple[Batch, ...]


def variants(arch: str, *, quick: bool = False) -> Iterator[Variant]:
    """What is compiled for `arch` (a key of `TARGETS`), each compiled form once; `quick` leaves the rest out."""
    seen = set()
    for case in cases():
        if arch in case.archs and (case.quick or not quick):
            for variant in case_variants(case, arch, case.sizes):
                if variant.identity not in seen:
                    seen.add(variant.identity)
                    yield variant


def case_variants(case: Case, arch: str, sizes: Iterable[Batch]) -> Iterator[Variant]:
    """What `case` compiles for steps of these sizes; one form may come twice."""
    for batch in sizes:
        name = f"{case.name} x {batch.tokens}" if len(case.sizes) > 1 else case.name
        first, *behind = variants_of(arch, name, partial(case.launch, batch))
        yield replace(first, expects=case.expects)
        for variant in behind:
            yield replace(variant, expects=case.behind)


def cases() -> Iterator[Case]:
    for shape in (*MODELS, *KEPT, *FULL):
        yield from _attention(shape)
    yield Case(name="plan_attention", launch=partial(_calls.plan, "invariant"), sizes=ROWS, quick=True)
    yield Case(name="plan_attention fast", launch=partial(_calls.plan, "fast"), sizes=ROWS)
    yield Case(name="step", launch=_calls.steps, sizes=ONE, quick=True)
    yield Case(name="blocks", launch=_calls.blocks, sizes=ONE, quick=True)
    for hidden in HIDDEN:
        yield from _norms(hidden, BF16)
    for dtype in (FP16, FP32):
        yield from _norms(4096, dtype)
    for width, name in WIDTHS:
        yield from _activation(width, name, BF16)
    for dtype in (FP16, FP32):
        yield from _activation(14336, "silu", dtype)
    for vocab in VOCABS:
        yield from _sampling(vocab, torch.float32)
    yield from _sampling(128256, BF16)
    for name, sizes in EXPERTS.items():
        for dtype in (BF16, FP16, FP32):
            yield from _routing(name, *sizes[:2], dtype)
        yield from _experts(name, sizes, BF16)
    for dtype in (FP16, FP32):
        yield from _experts("qwen-3-30b-a3b", EXPERTS["qwen-3-30b-a3b"], dtype)


def _attention(shape: Shape) -> Iterator[Case]:
    quick = shape is LLAMA
    if shape.name not in SAME_WRITE:
        write = partial(_calls.write, shape)
        yield Case(name=f"qkv_post {shape.name}", launch=write, expects=WIDE, quick=quick, sizes=SIZES)
    yield Case(
        name=f"paged_decode {shape.name}",
        launch=partial(_calls.decode, shape),
        expects=_decode_expects(shape),
        behind=WIDE if shape.head_dim >= 64 else Expects(),
        quick=quick,
        sizes=ONE,
    )
    if shape.layout.is_quantised:
        gather = partial(_calls.gather, shape)
        yield Case(name=f"gather_dequant {shape.name}", launch=gather, expects=SCALED, sizes=ONE)
        return
    prefill = Case(
        name=f"paged_prefill {shape.name}",
        launch=partial(_calls.prefill, shape, "pointer"),
        expects=WIDE if shape.dtype is FP32 else PREFILL,
        quick=quick,
        sizes=ONE,
    )
    yield prefill
    if shape.dtype is not FP32 and shape.head_dim not in (80, 96) and shape.block_size % 64 == 0:
        yield replace(prefill, launch=partial(_calls.prefill, shape, "tma"), archs=("sm_90",))


def _decode_expects(shape: Shape) -> Expects:
    if shape.dtype is FP32:
        return replace(WIDE, narrow_tiles=1)
    if not shape.layout.is_quantised:
        return DECODE
    # Where keys come as four bytes an int32, so do queries: each element is loaded alone, once per item.
    elements = shape.head_dim // 8
    return replace(DECODE, scaled=True, no_byte_reads=True, narrow_tiles=4, tiny_loads=elements)


def _norms(hidden: int, dtype: torch.dtype) -> Iterator[Case]:
    for add in ("none", "before", "after"):
        yield Case(
            name=f"norm {hidden} {_short(dtype)} residual {add}",
            launch=partial(_calls.norm, hidden, dtype, add),
            expects=WIDE,
            quick=hidden == 4096 and dtype is BF16,
            sizes=ONE,
        )


def _activation(width: int, name: str, dtype: torch.dtype) -> Iterator[Case]:
    yield Case(
        name=f"glu {name} {width} {_short(dtype)}",
        launch=partial(_calls.activation, width, dtype, name),
        expects=WIDE,
        quick=width == 14336 and dtype is BF16,
        sizes=ONE,
    )


def _sampling(vocab: int, dtype: torch.dtype) -> Iterator[Case]:
    kind = f"{vocab} {_short(dtype)}"
    quick = vocab == 128256 and dtype is torch.float32
    sample = partial(_calls.sampling, vocab, dtype)
    yield Case(name=f"sample {kind}", launch=sample, expects=WIDE, quick=quick, sizes=ONE)
    penalties = partial(_calls.penalties, vocab, dtype)
    yield Case(name=f"penalise {kind}", launch=penalties, expects=WIDE, sizes=ONE)
    for count in (0, 20):  # lists of two widths
        logprobs = partial(_calls.logprobs, vocab, dtype, count)
        # The logit of the token that is asked for is loaded alone.
        expects = replace(WIDE, tiny_loads=int(dtype is not torch.float32))
        yield Case(name=f"gather_logprobs {kind} top {count}", launch=logprobs, expects=expects, sizes=ONE)


def _routing(name: str, experts: int, top_k: int, dtype: torch.dtype) -> Iterator[Case]:
    launch = partial(_calls.route, dtype, experts, top_k)
    yield Case(name=f"route_experts {name} {_short(dtype)}", launch=launch, sizes=SIZES)


def _experts(name: str, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> Iterator[Case]:
    experts, top_k, hidden, inner = sizes
    for weight in (dtype, FP8, INT8):
        archs = tuple(arch for arch in TARGETS if ARCHS[arch].has_fp8 or weight is not FP8)
        kind = _short(dtype) if weight is dtype else f"{_short(dtype)} {_short(weight)}"
        for rows in TILE_ROWS:
            expects = replace(PREFILL, wgmma=rows >= 64)
            if dtype is FP32:  # with 8-bit weights many rows leave registers for narrow loads alone
                expects = WIDE if weight is FP32 or rows == 16 else Expects()
            for repeats, columns, width in ((top_k, 2 * inner, hidden), (1, hidden, inner)):
                yield Case(
                    name=f"expert_matmul {name} {kind} rows {rows} {columns} x {width}",
                    launch=partial(_calls.experts, dtype, weight, experts, rows, repeats, columns, width),
                    sizes=ONE,
                    archs=archs,
                    expects=expects,
                )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
