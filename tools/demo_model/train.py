"""Trains the demonstration model and writes it as a Hugging Face checkpoint folder.

    python -m tools.demo_model.train --output python/airi/builtin/airi-demo

Each worker is a process of one thread with its own share of every batch; they meet once a step to add up gradients.
On a busy machine this loses far less than threads that meet several hundred times a step.

The dialogues, the start weights and the order of batches follow from --seed and --workers; the sums inside torch may
still differ in their last bits between machines, and so may the weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, multiprocessing

from . import induction
from .chat_format import save_tokenizer, train_tokenizer
from .model import Decoder, ModelConfig
from .optimiser import Optimiser
from .packing import Batch, batches


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What steps are made of from `start` on: the share of copying exercises, the period of random repeats."""

    start: int
    read_back: float
    repeat_every: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """All that decides a training run. The rate rises for `warmup` steps and falls over the last `decay` steps.

    `tokens_per_step` counts all workers together.
    """

    seed: int = 1
    steps: int = 12_000
    tokens_per_step: int = 4096
    phases: tuple[Phase, ...] = (
        Phase(start=0, read_back=0.0, repeat_every=1),
        Phase(start=150, read_back=0.3, repeat_every=6),
        Phase(start=1500, read_back=0.1, repeat_every=30),
    )
    warmup: int = 40
    decay: int = 10_000
    muon_rate: float = 0.005
    adam_rate: float = 0.002
    tokenizer_dialogues: int = 20_000
    workers: int = 2
    compile: bool = True

    def rate_share(self, step: int) -> float:
        """The share of the peak learning rate at this step."""
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / self.decay))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where a run writes its checkpoint and its state, the state it goes on from, and where its workers meet."""

    output: Path
    meeting: Path
    state: Path | None = None
    resume: Path | None = None


class Training:
    """One worker's part of a run: model, optimiser and the number of steps done.

    Thread safety: none. Invariant: the weights depend on the options and `step` alone, whether or not the run was
    stopped and resumed in between; they are the same in all workers.
    """

    def __init__(
        self, options: TrainingOptions, config: ModelConfig, tokenizer: Tokenizer, *, worker: int = 0
    ) -> None:
        torch.manual_seed(options.seed)
        torch.set_num_threads(1)
        self._options, self._tokenizer, self._worker = options, tokenizer, worker
        self.model = Decoder(config)
        induction.lay_out(self.model)
        if options.compile:  # layer by layer: one small graph serves all layers and compiles in seconds
            for layer in self.model.layers:
                layer.compile(dynamic=False)
        self._optimiser = Optimiser(self.model, options.muon_rate, options.adam_rate)
        self.step = 0

    def run(
        self, until: int, log: Callable[[str], None] | None = None, checkpoint: Path | None = None
    ) -> list[float]:
        """Trains up to step `until`; returns this worker's mean loss per reply token of each step in nats."""
        options = self._options
        source = self._batches()
        losses: list[float] = []
        started, seen = time.monotonic(), 0
        while self.step < until:
            batch = next(source)
            losses.append(self._one_step(batch))
            seen += batch.tokens.numel() * options.workers
            if log and self.step % 20 == 0:
                recent = losses[-20:]
                speed = seen / (time.monotonic() - started)
                log(f"step {self.step} loss {sum(recent) / len(recent):.4f} {speed:.0f} tokens/s")
            if checkpoint and self.step % 100 == 0:
                self.save_state(checkpoint)
        return losses

    def _batches(self) -> Iterator[Batch]:
        """The batches of the steps that are left."""
        options = self._options
        ends = [phase.start for phase in options.phases[1:]] + [options.steps]
        for number, (phase, end) in enumerate(zip(options.phases, ends, strict=True)):
            source = batches(
                options.seed + number,
                self._tokenizer,
                options.tokens_per_step // options.workers,
                read_back=phase.read_back,
                repeat_every=phase.repeat_every,
                worker=self._worker,
                workers=options.workers,
                skip=max(0, self.step - phase.start),
            )
            yield from islice(source, max(0, end - max(self.step, phase.start)))

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss per reply token of a batch, in nats."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model(batch.tokens, batch.positions, batch.segments)
            logits = self.model.logits(hidden[batch.picked])
        return F.cross_entropy(logits.float(), batch.targets)

    def _one_step(self, batch: Batch) -> float:
        loss = self.loss(batch)
        loss.backward()
        if self._options.workers > 1:
            self._share_gradients()
        self._optimiser.step(self._options.rate_share(self.step))
        self.step += 1
        return float(loss.detach())

    def _share_gradients(self) -> None:
        """Replaces the gradients by their mean over all workers."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self._options.workers
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def save_state(self, path: Path) -> None:
        """Writes what `load_state` needs to go on from here."""
        state = {
            "step": self.step,
            "tokenizer": self._tokenizer.to_str(),
            "model": self.model.state_dict(),
            "muon": self._optimiser.muon.buffers,
            "adam": self._optimiser.adam.state_dict(),
        }
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def load_state(self, path: Path) -> None:
        """Goes on from a state that `save_state` wrote."""
        state = torch.load(path)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self._optimiser.muon.buffers = state["muon"]
        self._optimiser.adam.load_state_dict(state["adam"])


def _work(worker: int, options: TrainingOptions, files: Files) -> None:
    """One worker of a run; the first one logs and writes the files."""
    if options.workers > 1:
        meeting = f"file://{files.meeting}"
        dist.init_process_group("gloo", init_method=meeting, rank=worker, world_size=options.workers)
    config = ModelConfig()
    if files.resume:
        tokenizer = Tokenizer.from_str(torch.load(files.resume)["tokenizer"])
    else:
        tokenizer = train_tokenizer(config.vocab_size, options.tokenizer_dialogues, options.seed)
    training = Training(options, config, tokenizer, worker=worker)
    if files.resume:
        training.load_state(files.resume)
    if worker > 0:
        training.run(options.steps)
        return
    training.run(options.steps, log=lambda line: print(line, flush=True), checkpoint=files.state)
    training.model.save(files.output)
    save_tokenizer(tokenizer, files.output, config.max_position_embeddings)


def main() -> None:
    """Trains and writes the checkpoint folder."""
    defaults = TrainingOptions()
    parser = argparse.ArgumentParser(description="Train the demonstration model.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished checkpoint")
    parser.add_argument("--state", type=Path, help="file to save the run's state in every 100 steps")
    parser.add_argument("--resume", type=Path, help="state file to go on from")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps, help=f"default {defaults.steps}")
    parser.add_argument("--decay", type=int, default=defaults.decay, help=f"default {defaults.decay}")
    parser.add_argument("--workers", type=int, default=defaults.workers, help=f"default {defaults.workers}")
    given = parser.parse_args()
    options = TrainingOptions(seed=given.seed, steps=given.steps, decay=given.decay, workers=given.workers)
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        files = Files(output=given.output, meeting=meeting, state=given.state, resume=given.resume)
        multiprocessing.spawn(_work, args=(options, files), nprocs=options.workers)


if __name__ == "__main__":
    main()
