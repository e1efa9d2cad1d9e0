"""Trains the demonstration model and writes it as a Hugging Face checkpoint folder.

    python -m tools.demo_model.train --output python/airi/builtin/airi-demo

The dialogues, the start weights and the order of batches follow from --seed; the sums inside torch may still differ in
their last bits between machines, and so may the weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from .chat_format import save_tokenizer, train_tokenizer
from .model import Decoder, ModelConfig
from .optimiser import Optimiser
from .packing import Batch, batches


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """All that decides a training run. The rate rises for `warmup` steps and falls over the last `decay` steps."""

    seed: int = 1
    steps: int = 3000
    tokens_per_step: int = 4096
    warmup: int = 60
    decay: int = 1000
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    tokenizer_dialogues: int = 20_000
    threads: int = 2
    compile: bool = True

    def rate_share(self, step: int) -> float:
        """The share of the peak learning rate at this step."""
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / self.decay))


class Training:
    """One run: model, optimiser and the number of steps done.

    Thread safety: none. Invariant: the weights depend on the options and `step` alone, whether or not the run was
    stopped and resumed in between.
    """

    def __init__(self, options: TrainingOptions, config: ModelConfig, tokenizer: Tokenizer) -> None:
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        self._options, self._tokenizer = options, tokenizer
        self.model = Decoder(config)
        if options.compile:  # layer by layer: one small graph serves all layers and compiles in seconds
            for layer in self.model.layers:
                layer.compile(dynamic=False)
        self._optimiser = Optimiser(self.model, options.muon_rate, options.adam_rate)
        self.step = 0

    def run(
        self, until: int, log: Callable[[str], None] | None = None, checkpoint: Path | None = None
    ) -> list[float]:
        """Trains up to step `until`; returns the mean loss per reply token of each step in nats."""
        source = batches(self._options.seed, self._tokenizer, self._options.tokens_per_step, skip=self.step)
        losses: list[float] = []
        started, seen = time.monotonic(), 0
        while self.step < until:
            batch = next(source)
            losses.append(self._one_step(batch))
            seen += batch.tokens.numel()
            if log and self.step % 20 == 0:
                recent = losses[-20:]
                speed = seen / (time.monotonic() - started)
                log(f"step {self.step} loss {sum(recent) / len(recent):.4f} {speed:.0f} tokens/s")
            if checkpoint and self.step % 100 == 0:
                self.save_state(checkpoint)
        return losses

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss per reply token of a batch, in nats."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model(batch.tokens, batch.positions, batch.segments)
            logits = self.model.logits(hidden[batch.picked])
        return F.cross_entropy(logits.float(), batch.targets)

    def _one_step(self, batch: Batch) -> float:
        loss = self.loss(batch)
        loss.backward()
        self._optimiser.step(self._options.rate_share(self.step))
        self.step += 1
        return float(loss.detach())

    def save_state(self, path: Path) -> None:
        """Writes what `load_state` needs to go on from here."""
        state = {
            "step": self.step,
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
    parser.add_argument("--threads", type=int, default=defaults.threads, help=f"default {defaults.threads}")
    given = parser.parse_args()
    options = TrainingOptions(seed=given.seed, steps=given.steps, decay=given.decay, threads=given.threads)
    config = ModelConfig()
    tokenizer = train_tokenizer(config.vocab_size, options.tokenizer_dialogues, options.seed)
    training = Training(options, config, tokenizer)
    if given.resume:
        training.load_state(given.resume)
    training.run(options.steps, log=lambda line: print(line, flush=True), checkpoint=given.state)
    training.model.save(given.output)
    save_tokenizer(tokenizer, given.output, config.max_position_embeddings)


if __name__ == "__main__":
    main()
