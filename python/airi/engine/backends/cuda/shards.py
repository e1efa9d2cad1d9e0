"""What one of several devices holds of a model, and how the devices' parts become one result.

Tensor parallelism: projections into attention and MLPs are cut by rows (heads, inner width), those back by columns,
embedding and head by vocabulary. Each device then holds a smaller decoder, `local_spec`, whose branches are summed
over the devices; where a model has fewer kv heads than there are devices, neighbours hold the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from airi.engine.spec import DecoderSpec
from airi.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["Collective", "Shard", "SingleDevice", "local_spec"]

_VOCAB_MULTIPLE = 64
"""Rows of a vocabulary's part: matrix products of other widths cannot use aligned loads."""


class Collective(Protocol):
    """What the devices of one model do together. All of them call the same methods in the same order."""

    @property
    def shard(self) -> Shard: ...

    def all_reduce(self, x: torch.Tensor) -> None:
        """Replaces x by its sum over the devices."""
        ...

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """All devices' x side by side along the last dimension, in the order of their ranks."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of `world` equal ones."""

    rank: int = 0
    world: int = 1

    def part(self, size: int, name: str) -> range:
        """This part of [0, size); raises `ConfigError` unless the parts are equal."""
        if size % self.world:
            raise ConfigError(
                f"tensor_parallel_size is {self.world}; it must divide the model's {name}, which is {size}",
                field="tensor_parallel_size",
            )
        width = size // self.world
        return range(self.rank * width, (self.rank + 1) * width)

    def kv_heads(self, count: int) -> range:
        """The kv heads that this part's query heads read."""
        if count >= self.world or self.world % count:
            return self.part(count, "num_key_value_heads")
        head = self.rank * count // self.world
        return range(head, head + 1)

    def qkv_rows(self, spec: DecoderSpec) -> Sequence[range]:
        """Rows of queries, keys and values in the whole model's fused projection; `spec` is the whole model's."""
        dim, keys = spec.head_dim, self.kv_heads(spec.num_kv_heads)
        heads = self.part(spec.num_heads, "num_attention_heads")
        first = (0, spec.q_size, spec.q_size + spec.kv_size)
        parts = (heads, keys, keys)
        return [
            range(at + part.start * dim, at + part.stop * dim) for at, part in zip(first, parts, strict=True)
        ]

    def vocab_width(self, vocab_size: int) -> int:
        """Rows of the vocabulary per part, rounded up: the last part has fewer that count."""
        share = -(-vocab_size // self.world)
        return -(-share // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

    def vocab_rows(self, vocab_size: int) -> range:
        """The rows of the vocabulary that count in this part."""
        width = self.vocab_width(vocab_size)
        return range(min(self.rank * width, vocab_size), min((self.rank + 1) * width, vocab_size))


class SingleDevice:
    """The collective of a model on one device: nothing to do."""

    shard = Shard()

    def all_reduce(self, x: torch.Tensor) -> None:
        """As `Collective.all_reduce`."""

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """As `Collective.all_gather`."""
        return x


def local_spec(spec: DecoderSpec, shard: Shard) -> DecoderSpec:
    """The decoder that one device runs; the vocabulary stays whole. Raises `ConfigError` for a cut that is uneven."""
    moe = spec.moe
    if moe is not None:
        inner = shard.part(moe.intermediate_size, "moe_intermediate_size")
        moe = replace(moe, intermediate_size=len(inner))
    return replace(
        spec,
        num_heads=len(shard.part(spec.num_heads, "num_attention_heads")),
        num_kv_heads=len(shard.kv_heads(spec.num_kv_heads)),
        intermediate_size=len(shard.part(spec.intermediate_size, "intermediate_size")),
        moe=moe,
    )
