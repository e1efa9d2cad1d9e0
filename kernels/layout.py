"""Where keys and values lie in the arena."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._checks import check

GRANULE_BYTES = 4096
"""What one unit of a block-table entry stands for."""

QUANTISED_MAX = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""The largest value that a quantised dtype stores."""
_ROW_ALIGNMENT = 16
"""Bytes: what one thread loads at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Where keys and values lie in a block; strides and offsets in bytes.

    The head_dim elements of token t of kv head h start at `entry * 4096 + layer_offset + h * head_stride
    + t * token_stride` for keys and kv_stride further for values. Where they are quantised, float32 scales
    follow: the key's of token t lies at `scale_offset + 4 * t` from its head's start, the value's
    `4 * block_size` further; a value is what is stored times its scale.
    """

    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    head_stride: int
    kv_stride: int
    token_stride: int
    scale_offset: int = 0
    """Zero where nothing is quantised."""

    def __post_init__(self) -> None:
        for name in ("block_size", "num_kv_heads", "head_dim"):
            check(name, getattr(self, name), "1 or more", ok=getattr(self, name) >= 1)
        row = self.head_dim * self.dtype.itemsize
        for name in ("head_stride", "kv_stride", "token_stride"):
            value = getattr(self, name)
            accepted = f"a multiple of {self.dtype.itemsize} from {row}"
            check(name, value, accepted, ok=value >= row and value % self.dtype.itemsize == 0)
        if self.is_quantised:
            fits = self.scale_offset >= row and self.scale_offset % 4 == 0 and self.head_stride % 4 == 0
            check("scale_offset", self.scale_offset, f"a multiple of 4 from {row}, as head_stride", ok=fits)
        else:
            check("scale_offset", self.scale_offset, f"0 for {self.dtype}", ok=self.scale_offset == 0)

    @classmethod
    def block_major(
        cls, *, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> KvLayout:
        """The default order inside a layer: [kv_head][K|V][token][dim], then the head's scales [K|V][token]."""
        row = head_dim * dtype.itemsize
        data = 2 * block_size * row
        scales = 2 * block_size * 4 if dtype in QUANTISED_MAX else 0
        return cls(
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            head_stride=-(-(data + scales) // _ROW_ALIGNMENT) * _ROW_ALIGNMENT if scales else data,
            kv_stride=block_size * row,
            token_stride=row,
            scale_offset=data if scales else 0,
        )

    @property
    def is_quantised(self) -> bool:
        """Whether scales belong to the elements."""
        return self.dtype in QUANTISED_MAX

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer of one block in the default order."""
        return self.num_kv_heads * self.head_stride

    def block(self, arena: torch.Tensor, entry: int, layer_offset: int) -> torch.Tensor:
        """A view of one layer of one block: [kv_head, K|V, token, dim]."""
        size = self.dtype.itemsize
        return torch.as_strided(
            arena.view(self.dtype),
            (self.num_kv_heads, 2, self.block_size, self.head_dim),
            (self.head_stride // size, self.kv_stride // size, self.token_stride // size, 1),
            (entry * GRANULE_BYTES + layer_offset) // size,
        )

    def scales(self, arena: torch.Tensor, entry: int, layer_offset: int) -> torch.Tensor:
        """A view of the scales of one layer of one block: [kv_head, K|V, token] float32."""
        check("dtype", self.dtype, "one that is quantised", ok=self.is_quantised)
        return torch.as_strided(
            arena.view(torch.float32),
            (self.num_kv_heads, 2, self.block_size),
            (self.head_stride // 4, self.block_size, 1),
            (entry * GRANULE_BYTES + layer_offset + self.scale_offset) // 4,
        )
