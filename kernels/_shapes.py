"""Arguments without memory behind them: what launchers are called with to learn what they compile."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layout import KvLayout

ARENA_BYTES = 1 << 36
"""64 GiB: its offsets pass 2^31, as they do on a device."""
MAX_ROWS = 256
MAX_TOKENS = 131072
NUM_LAYERS = 32


def meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor with dtype, shape and strides, and nothing in it."""
    return torch.empty(shape, dtype=dtype, device="meta")


def arena() -> torch.Tensor:
    return meta(torch.uint8, ARENA_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's attention, and how its keys and values are kept."""

    name: str
    head_dim: int
    group: int
    """Query heads per kv head."""
    num_kv_heads: int = 8
    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype | None = None
    """`dtype` unless said."""
    block_size: int = 64
    window: int = 0
    softcap: float = 0.0
    rotary_dim: int | None = None
    """All of `head_dim` unless said."""
    has_head_norms: bool = False
    """Whether heads of queries and keys are normed before they are rotated."""

    @property
    def num_heads(self) -> int:
        return self.group * self.num_kv_heads

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def layout(self) -> KvLayout:
        return KvLayout.block_major(
            block_size=self.block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.kv_dtype or self.dtype,
        )

    @property
    def layer_offset(self) -> int:
        """Bytes from a block's start to its last layer."""
        return (NUM_LAYERS - 1) * self.layout.layer_bytes

    def block_table(self) -> torch.Tensor:
        return meta(torch.int32, MAX_ROWS, MAX_TOKENS // self.block_size)

    def queries(self, tokens: int) -> torch.Tensor:
        """As `qkv_post` leaves them: [kv_heads, tokens, group, head_dim]."""
        return meta(self.dtype, self.num_kv_heads, tokens, self.group, self.head_dim)

    def out(self, tokens: int) -> torch.Tensor:
        return meta(self.dtype, tokens, self.num_heads, self.head_dim)


@dataclass(frozen=True, slots=True)
class Batch:
    """How many rows and tokens a step has room for, and its int32 buffers."""

    rows: int
    tokens: int

    @property
    def query_start(self) -> torch.Tensor:
        return meta(torch.int32, self.rows + 1)

    @property
    def seq_lens(self) -> torch.Tensor:
        return meta(torch.int32, self.rows)

    @property
    def slots(self) -> torch.Tensor:
        return meta(torch.int32, self.rows)


LLAMA = Shape(name="llama-3-8b", head_dim=128, group=4)
FP8, INT8, FP16, FP32 = torch.float8_e4m3fn, torch.int8, torch.float16, torch.float32

# What models have: every head dim, groups that divide a tile and groups that do not, windows and soft caps.
MODELS = (
    LLAMA,
    Shape(name="llama-3-70b", head_dim=128, group=8),
    Shape(name="qwen-2.5-14b", head_dim=128, group=5),
    Shape(name="qwen-2-7b", head_dim=128, group=7, num_kv_heads=4),
    Shape(name="qwen-3-0.6b", head_dim=128, group=2, has_head_norms=True),
    Shape(name="glm-4-9b", head_dim=128, group=16, num_kv_heads=2, rotary_dim=64),
    Shape(name="llama-2-7b", head_dim=128, group=1, num_kv_heads=32),
    Shape(name="mistral-7b", head_dim=128, group=4, window=4096),
    Shape(name="qwen-2.5-0.5b", head_dim=64, group=7, num_kv_heads=2),
    Shape(name="tinyllama", head_dim=64, group=8, num_kv_heads=4),
    Shape(name="phi-3-mini", head_dim=96, group=1, num_kv_heads=32),
    Shape(name="phi-2", head_dim=80, group=1, num_kv_heads=32, rotary_dim=32),
    Shape(name="gemma-3-4b", head_dim=256, group=2, num_kv_heads=4, window=1024, has_head_norms=True),
    Shape(name="gemma-2-9b", head_dim=256, group=2, window=4096, softcap=50.0),
    # The most registers: a group that divides no tile, a soft cap, blocks smaller than a tile of keys.
    Shape(name="corner d64", head_dim=64, group=7, softcap=50.0, block_size=16),
    Shape(name="corner d96", head_dim=96, group=7, softcap=50.0, block_size=16),
    Shape(name="corner d128", head_dim=128, group=7, softcap=50.0, block_size=16),
    Shape(name="corner d128 window", head_dim=128, group=5, softcap=50.0, window=4096, block_size=16),
    Shape(name="corner d256", head_dim=256, group=7, softcap=50.0, block_size=16),
    Shape(name="corner d256 window", head_dim=256, group=5, softcap=50.0, window=4096, block_size=16),
    Shape(name="demo", head_dim=32, group=2, num_kv_heads=2),
)
# How they may be kept beside bfloat16 in blocks of 64.
KEPT = (
    Shape(name="fp16", head_dim=128, group=4, dtype=FP16),
    Shape(name="fp16 d256", head_dim=256, group=2, dtype=FP16, softcap=50.0),
    Shape(name="blocks of 16", head_dim=128, group=4, block_size=16),
    Shape(name="blocks of 32", head_dim=128, group=4, block_size=32),
    Shape(name="blocks of 128", head_dim=128, group=4, block_size=128),
    Shape(name="fp8", head_dim=128, group=4, kv_dtype=FP8),
    Shape(name="fp8 fp16", head_dim=128, group=4, dtype=FP16, kv_dtype=FP8),
    Shape(name="fp8 d64", head_dim=64, group=7, num_kv_heads=2, kv_dtype=FP8),
    Shape(name="fp8 d80", head_dim=80, group=1, num_kv_heads=32, kv_dtype=FP8),
    Shape(name="fp8 d96", head_dim=96, group=1, num_kv_heads=32, kv_dtype=FP8),
    Shape(name="fp8 d256", head_dim=256, group=2, kv_dtype=FP8, softcap=50.0),
    Shape(name="fp8 window", head_dim=128, group=8, kv_dtype=FP8, window=4096),
    Shape(name="fp8 d32", head_dim=32, group=2, num_kv_heads=2, kv_dtype=FP8),
    Shape(name="fp8 corner d64", head_dim=64, group=7, kv_dtype=FP8, softcap=50.0, window=4096),
    Shape(
        name="fp8 corner d128", head_dim=128, group=7, kv_dtype=FP8, softcap=50.0, window=4096, block_size=16
    ),
    Shape(name="int8", head_dim=128, group=4, kv_dtype=INT8),
    Shape(name="int8 d64", head_dim=64, group=7, num_kv_heads=2, kv_dtype=INT8),
    Shape(name="int8 d256", head_dim=256, group=2, kv_dtype=INT8),
)
# Without matrix units: what is compiled in 16 bits above, where registers are fewest.
FULL = (
    Shape(name="fp32", head_dim=128, group=4, dtype=FP32),
    Shape(name="fp32 d32", head_dim=32, group=2, num_kv_heads=2, dtype=FP32),
    Shape(name="fp32 d64", head_dim=64, group=7, num_kv_heads=2, dtype=FP32),
    Shape(name="fp32 d80", head_dim=80, group=1, num_kv_heads=32, dtype=FP32, rotary_dim=32),
    Shape(name="fp32 d96", head_dim=96, group=1, num_kv_heads=32, dtype=FP32),
    Shape(
        name="fp32 d256", head_dim=256, group=2, dtype=FP32, window=4096, softcap=50.0, has_head_norms=True
    ),
    Shape(name="fp32 corner d64", head_dim=64, group=7, dtype=FP32, softcap=50.0, window=4096, block_size=16),
    Shape(name="fp32 corner d96", head_dim=96, group=7, dtype=FP32, softcap=50.0, window=4096, block_size=16),
    Shape(
        name="fp32 corner d128", head_dim=128, group=5, dtype=FP32, softcap=50.0, window=4096, block_size=16
    ),
    Shape(
        name="fp32 corner d256", head_dim=256, group=7, dtype=FP32, softcap=50.0, window=4096, block_size=16
    ),
)
