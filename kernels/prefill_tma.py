"""Attention of chunks of prompts over paged memory with tensor memory loads and specialised warps (sm_90 and later).

Triton specialises warps by itself where a kernel has four warps, one loop over the keys, no early return, and reads
queries by a descriptor made on the device and keys and values by two-dimensional ones; the compiler fails or says
nothing and does not where one of these is missing. So the causal mask is applied to all tiles, and a program without
a query tile gets an empty range. Whole tiles are read: what lies in an owned block but was never written must be
finite, or its weight of 0 makes NaN of it.
"""

from __future__ import annotations

import contextvars
import logging
import threading

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ._attend import log_sum, scores, shares, softmax_step, visible
from ._launch import INTERPRETED, launch_guard
from ._prefill import Prefill, Tiles
from .arch import Arch
from .layout import GRANULE_BYTES

BLOCK_M = 128
_log = logging.getLogger(__name__)
_unusable: set[tuple[object, ...]] = set()
"""Configurations that a device refused; see try_launch."""


def misfit(call: Prefill, tiles: Tiles, arch: Arch) -> str | None:
    """Why this kernel cannot take a call, as "<argument> must be <accepted>, got <found>"; None where it can."""
    layout, q = call.layout, call.q
    row = layout.head_dim * layout.dtype.itemsize
    strides = (layout.head_stride, layout.kv_stride, call.layer_offset)
    rows = max(q.numel() // layout.head_dim, call.arena.numel() // row)
    for name, found, accepted, ok in (
        # sm_100 has the loads too, but what Triton makes of this kernel there spills 328 bytes at head_dim 128.
        ("architecture", arch.name, "sm_90", arch.name == "sm_90"),
        ("layout.dtype", layout.dtype, "float16 or bfloat16", layout.dtype in (torch.float16, torch.bfloat16)),
        ("head_dim", layout.head_dim, "a power of two", GRANULE_BYTES % row == 0),
        ("block_size", layout.block_size, "a multiple of 64", layout.block_size % 64 == 0),
        ("layout.token_stride", layout.token_stride, f"{row}", layout.token_stride == row),
        ("head_stride, kv_stride, layer_offset", strides, f"multiples of {row}", not any(n % row for n in strides)),
        ("q strides", q.stride(), "contiguous", q.is_contiguous()),
        ("q address", hex(q.data_ptr()), "a multiple of 16", q.data_ptr() % 16 == 0),
        ("rows of q and arena", rows, "less than 2^31", rows < 2**31),
        ("query rows of a tile", tiles.block_m, f"{BLOCK_M}", tiles.block_m == BLOCK_M),
    ):  # fmt: skip
        if not ok:
            return f"{name} must be {accepted}, got {found}"
    return None


def try_launch(call: Prefill) -> bool:
    """Launches, or returns False where this configuration does not compile or fit on this device.

    What was refused once is not tried again by this process.
    """
    layout = call.layout
    options = call.window > 0, call.softcap > 0, call.lse is not None
    key = call.q.device, layout.dtype, layout.head_dim, call.group, layout.block_size, *options
    if key in _unusable:
        return False
    try:
        launch(call)
    except torch.OutOfMemoryError:  # of this moment, not of this configuration
        raise
    except Exception as error:  # the compiler's and the driver's errors have no common class
        _unusable.add(key)
        _log.warning("prefill without tensor memory loads for %s: %s", key, error)
        return False
    return True


def launch(call: Prefill) -> None:
    """Launches on the queries' device. One stream at a time per device: programs build descriptors in one buffer."""
    contextvars.copy_context().run(_launch, call)  # Triton's allocator is set for this launch alone


def _launch(call: Prefill) -> None:
    layout = call.layout
    row = layout.head_dim * layout.dtype.itemsize
    tile = 128 if layout.head_dim <= 128 and layout.block_size % 128 == 0 else 64
    rows = call.arena.view(layout.dtype).view(-1, layout.head_dim)
    triton.set_allocator(_descriptors_on(call.q.device))
    with launch_guard():
        _paged_prefill_tma_kernel[call.grid](
            call.q,
            TensorDescriptor.from_tensor(rows, [tile, layout.head_dim]),
            call.out,
            call.lse,
            call.tiles,
            call.query_start,
            call.seq_lens,
            call.slots,
            call.block_table,
            call.q.shape[1],
            *call.out.stride()[:2],
            call.block_table.stride(0),
            call.layer_offset // row,
            layout.head_stride // row,
            layout.kv_stride // row,
            call.scale,
            call.softcap,
            call.window,
            D=layout.head_dim,
            GROUP=call.group,
            BLOCK_SIZE=layout.block_size,
            ENTRY_ROWS=GRANULE_BYTES // row,
            BM=BLOCK_M,
            TILE=tile,
            HAS_WINDOW=call.window > 0,
            HAS_SOFTCAP=call.softcap > 0,
            UPCAST=INTERPRETED and layout.dtype is torch.bfloat16,
            SPECIALISE=True,
            # Four warps are twelve once specialised: 168 registers each, no stack; 33 KB of shared memory at
            # head_dim 32, 99 KB at 64 with tiles of 128 keys, 115 KB at 128 (181 KB with 128 keys), 230 KB at 256.
            num_warps=4,
            num_stages=2,
        )


class _Descriptors:
    """Where the programs of a launch build their query descriptors. Grows, and never frees what a graph may hold.

    Thread safety: any thread may call.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._buffers: list[torch.Tensor] = []

    def __call__(self, size: int, alignment: int, stream: int | None) -> torch.Tensor:
        """At least `size` bytes, 128 per program. Triton's allocator protocol."""
        with self._lock:
            if not self._buffers or self._buffers[-1].numel() < size:
                # 1 MiB serves 8,192 programs: more than a step of 32k tokens has at 8 kv heads and groups of 4.
                bytes_ = max(1 << 20, triton.next_power_of_2(size))
                self._buffers.append(torch.empty(bytes_, dtype=torch.uint8, device=self._device))
            return self._buffers[-1]


_descriptors: dict[torch.device, _Descriptors] = {}


def _descriptors_on(device: torch.device) -> _Descriptors:
    return _descriptors.setdefault(device, _Descriptors(device))


@triton.jit(do_not_specialize=("tokens", "stride_table", "layer_row", "head_rows", "kv_rows", "window"))
def _paged_prefill_tma_kernel(
    q_ptr,
    kv_desc,
    out_ptr,
    lse_ptr,
    tile_ptr,
    query_start_ptr,
    seq_len_ptr,
    slot_ptr,
    table_ptr,
    tokens,
    stride_ot: tl.int64,
    stride_oh: tl.int64,
    stride_table: tl.int64,
    layer_row,
    head_rows,
    kv_rows,
    scale,
    softcap,
    window,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ENTRY_ROWS: tl.constexpr,
    BM: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    SPECIALISE: tl.constexpr,
):
    """One tile of BM // GROUP queries of a row, all GROUP query heads of a kv head. Grid: (tiles, kv_heads)."""
    BQ: tl.constexpr = BM // GROUP
    i_tile = tl.program_id(0)
    i_head = tl.program_id(1)
    row = tl.load(tile_ptr + 2 * i_tile)
    is_tile = row >= 0
    row = tl.maximum(row, 0)
    first = tl.load(tile_ptr + 2 * i_tile + 1) * BQ
    start = tl.load(query_start_ptr + row)
    queries = tl.where(is_tile, tl.load(query_start_ptr + row + 1) - start, 0)
    keys = tl.where(is_tile, tl.load(seq_len_ptr + row), 0)
    context = keys - queries
    table_ptr += tl.maximum(tl.load(slot_ptr + row), 0).to(tl.int64) * stride_table
    head_row = layer_row + i_head * head_rows

    # Rows of [kv_heads, tokens, GROUP]: a tile's are contiguous, and those behind its own are masked.
    q_desc = tl.make_tensor_descriptor(
        q_ptr, shape=(tl.num_programs(1) * tokens * GROUP, D), strides=(D, 1), block_shape=(BM, D)
    )
    b_q = q_desc.load([(i_head * tokens + start + first) * GROUP, 0])  # [BM, D]
    if UPCAST:
        b_q = b_q.to(tl.float32)
    o_m = tl.arange(0, BM)
    o_t = tl.arange(0, TILE)
    o_d = tl.arange(0, D)
    o_query = first + o_m // GROUP
    o_position = context + o_query
    b_acc = tl.zeros([BM, D], tl.float32)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(context + first - window + 1, 0) // TILE * TILE
    end = tl.minimum(context + first + BQ, keys)
    for o_tile in tl.range(begin, end, TILE, warp_specialize=SPECIALISE):
        entry = tl.load(table_ptr + o_tile // BLOCK_SIZE)
        o_row = entry * ENTRY_ROWS + head_row + o_tile % BLOCK_SIZE
        b_k = kv_desc.load([o_row, 0])  # [TILE, D]
        if UPCAST:
            b_k = b_k.to(tl.float32)
        b_s = scores(b_q, b_k, scale, softcap, HAS_SOFTCAP)  # [BM, TILE]
        b_s = tl.where(visible(o_position, o_tile + o_t, window, HAS_WINDOW), b_s, float("-inf"))
        b_p, b_decay, b_max, b_sum = softmax_step(b_s, b_max, b_sum, MASKED=True)
        b_v = kv_desc.load([o_row + kv_rows, 0])  # [TILE, D]
        if UPCAST:
            b_v = b_v.to(tl.float32)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision="ieee")

    m_query = (o_query < queries) & (o_m < BQ * GROUP)
    b_out = shares(b_acc, b_sum)
    o_token = (start + o_query).to(tl.int64)
    o_head = i_head * GROUP + o_m % GROUP
    o_out = o_token * stride_ot + o_head * stride_oh
    tl.store(
        out_ptr + o_out[:, None] + o_d[None, :], b_out.to(out_ptr.dtype.element_ty), mask=m_query[:, None]
    )
    if lse_ptr is not None:
        o_lse = o_token * (tl.num_programs(1) * GROUP) + o_head
        tl.store(lse_ptr + o_lse, log_sum(b_max, b_sum), mask=m_query)
