"""A worker of tensor parallelism that answers, once it has an arena, how many numbers in it are not finite."""

from __future__ import annotations

import sys

import torch

from airi.engine.backends.cuda import worker
from airi.engine.backends.cuda.ranks import Done, Probe

NAME = "tests.engine.watched_worker"


class _Watched(worker._Worker):
    def _probe(self, order: Probe) -> Done:
        if self._arena is None:
            return super()._probe(order)
        return Done(num_not_finite(self._arena.memory))


def num_not_finite(memory: torch.Tensor) -> int:
    """Of an arena of float32."""
    return int((~memory.view(torch.float32).isfinite()).sum())


if __name__ == "__main__":
    worker._Worker = _Watched  # type: ignore[misc]
    worker.main(sys.argv[1:])
