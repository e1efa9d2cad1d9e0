"""A model whose layers run on several devices, as the engine's runner sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airi.engine.backends import ModelInfo, ProgressCallback
from airi.engine.backends.cuda.interface import CudaBinding, CudaModel, CudaStep, TableChanges, TokenOps
from airi.engine.backends.cuda.ranks import Bind, Capture, Changes, Logits, Step
from airi.engine.backends.cuda.team import Team

if TYPE_CHECKING:
    import torch

__all__ = ["ParallelModel"]


class ParallelModel:
    """Rank 0's part of a model, in step with the other ranks'; a `CudaModel`.

    What decides how a step is run goes to the workers' hosts, its tensors from device to device in the stream of the
    steps: tokens that the step before sampled on rank 0's device reach the others without any host.
    *Thread safety*: none. *Invariant*: every rank runs the same steps of the same models in the same order, or the
    team is lost.
    """

    def __init__(self, index: int, local: CudaModel, team: Team, batch: torch.Tensor) -> None:
        """`batch`: the memory of `DeviceBatch`, whole; `index`: of the models that the team loaded."""
        self.info: ModelInfo = local.info
        self.ops: TokenOps = local.ops  # what they change reaches the others with the batch
        self._index = index
        self._local = local
        self._team = team
        self._batch = batch

    @property
    def weight_bytes(self) -> int:
        """As `CudaModel.weight_bytes`, of this rank."""
        return self._local.weight_bytes

    def bytes_per_block(self, block_size: int) -> int:
        """As `CudaModel.bytes_per_block`: of every rank."""
        return self._local.bytes_per_block(block_size)

    def bind(self, binding: CudaBinding) -> None:
        """As `CudaModel.bind`; the arena is the team's."""
        slots, columns = binding.block_table.shape
        with self._team.alongside(Bind(self._index, binding.block_size, slots, columns)):
            self._local.bind(binding)

    def place_weights(self, memory: torch.Tensor) -> None:
        """As `CudaModel.place_weights`, which options rule out here: sleeping is one device's."""
        raise NotImplementedError("weights of a model on several devices stay where they are")

    def capture(self, progress: ProgressCallback | None) -> None:
        """As `CudaModel.capture`, on all ranks together."""
        with self._team.alongside(Capture(self._index)):
            self._team.group.broadcast(self._batch)
            self._local.capture(progress)

    def change_table(self, changes: TableChanges) -> None:
        """As `CudaModel.change_table`; raises what a rank was lost with."""
        with self._team.lockstep():
            self._team.tell(Changes(self._index, len(changes.deltas)))
            for part in (changes.deltas, changes.count, changes.cleared):
                self._team.group.broadcast(part)
            self._local.change_table(changes)

    def enqueue(self, step: CudaStep) -> torch.Tensor:
        """As `CudaModel.enqueue`; raises what a rank was lost with."""
        with self._team.lockstep():
            self._team.tell(
                Step(
                    self._index,
                    step.num_rows,
                    step.num_tokens,
                    step.num_logits,
                    step.query_start.tobytes(),
                    step.seq_lens.tobytes(),
                )
            )
            self._team.group.broadcast(self._batch)
            return self._local.enqueue(step)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """As `CudaModel.logits`; raises what a rank was lost with."""
        with self._team.lockstep():
            self._team.tell(Logits(self._index, len(rows)))
            self._team.group.broadcast(rows)
            return self._local.logits(rows)
