"""Measures steps before the first request comes, so that the core knows from the start how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from airi import _core
from airi.engine.backends import StepInputs
from airi.engine.loading import HostedModel
from airi.engine.memory import Arena
from airi.engine.options import SettledOptions
from airi.engine.platform import Platform, Runner

__all__ = ["Measured", "learn_step_times", "measure_apart", "measure_steps", "teach"]

_CONTEXT = 256
_MOST_ROWS = 32
_SHORTEST_PROMPT = 32
_MOST_TURNS = 3
_MOST_TEACHING = 64
_MEASURED_BYTES = 64 * 2**20
"""Of KV that steps are measured on: more than a core's caches hold, little beside the weights of a model."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a step computed, as `Runtime.observe_step` takes it, and how long that took."""

    work: tuple[int, int, int, float]
    micros: float


def learn_step_times(
    runtime: _core.Runtime, model: HostedModel, options: SettledOptions, arena: Arena
) -> None:
    """Measures a model's steps, where it has targets, and tells the core. `arena` is what its runner is bound to."""
    if _is_measured(model, options):
        teach(runtime, model.index, _measure(model, options, arena))


def measure_apart(model: HostedModel, options: SettledOptions, platform: Platform) -> list[Measured]:
    """Measures a model that is to come while the arena is in use, where it has targets: on memory of its own.

    Raises MemoryBudgetError.
    """
    if not _is_measured(model, options):
        return []
    block_bytes = model.runner.model.bytes_per_block(model.block_size)
    arena = platform.arena(max(_MEASURED_BYTES // block_bytes, 1) * block_bytes)
    with model.runner.bound_to(arena):
        return _measure(model, options, arena)


def _is_measured(model: HostedModel, options: SettledOptions) -> bool:
    return bool(options.targets(model.options)) and options.step_warmup_s > 0


def _measure(model: HostedModel, options: SettledOptions, arena: Arena) -> list[Measured]:
    return measure_steps(
        model.runner,
        arena,
        block_size=model.block_size,
        num_kv_blocks=model.num_kv_blocks,
        max_num_seqs=options.max_num_seqs,
        max_batch_tokens=options.max_batch_tokens,
        max_model_len=model.max_model_len,
        seconds=options.step_warmup_s,
    )


def measure_steps(
    runner: Runner,
    arena: Arena,
    *,
    block_size: int,
    num_kv_blocks: int,
    max_num_seqs: int,
    max_batch_tokens: int,
    max_model_len: int,
    seconds: float,
) -> list[Measured]:
    """Runs steps that decode, that prefill and that do both, the most different ones first, in up to three turns.

    Takes about `seconds`, but runs at least one that decodes and one that prefills; what would take longer than is
    left is passed over. Of a step that was run several times the shortest time counts, as nothing makes it shorter.
    `arena` must be zero, and is again afterwards.
    """
    # Each block of each row another one, as far as they go: what stays in a cache would look too fast. Written to,
    # as memory that never was is one page of zeros.
    block_bytes = runner.model.bytes_per_block(block_size)
    num_blocks = min(num_kv_blocks, arena.nbytes // block_bytes, max(_MEASURED_BYTES // block_bytes, 1))
    steps = _steps(max_num_seqs, max_batch_tokens, max_model_len)
    until = time.perf_counter() + seconds
    arena.zero(0, num_blocks * block_bytes)
    with runner.spread_out(num_blocks):
        measured = _time_steps(runner, steps, until)
    arena.zero(0, num_blocks * block_bytes)
    return measured


def _time_steps(runner: Runner, steps: Sequence[StepInputs], until: float) -> list[Measured]:
    fastest: dict[int, Measured] = {}
    runner.run_apart(_step([(0, 1)]))  # touches for the first time what later ones only use
    for turn in range(_MOST_TURNS):
        for number, step in enumerate(steps):
            must_run = turn == 0 and number < 2
            if not must_run and time.perf_counter() + _guess_s(step, fastest.values()) > until:
                continue
            began = time.perf_counter()
            runner.run_apart(step)
            micros = max((time.perf_counter() - began) * 1e6, 1.0)
            if number not in fastest or micros < fastest[number].micros:
                fastest[number] = Measured(_work(step), micros)
    return list(fastest.values())


def teach(runtime: _core.Runtime, model: int, measured: list[Measured]) -> None:
    """Tells the core what was measured, as often as it wants to hear before it trusts what it has learnt."""
    for _ in range(_MOST_TEACHING):
        if runtime.step_time(model).is_trained:
            return
        for step in measured:
            runtime.observe_step(model, step.work, step.micros)


def _steps(max_num_seqs: int, max_batch_tokens: int, max_model_len: int) -> list[StepInputs]:
    """First one that decodes and one that prefills, then the ends of what is usual, then what lies between."""
    most = min(max_num_seqs, max_batch_tokens, _MOST_ROWS)
    longest = min(max_batch_tokens, max_model_len)
    context = min(_CONTEXT, max_model_len - 1)
    shortest = min(_SHORTEST_PROMPT, longest)
    middle = min(4 * shortest, longest)
    batches = [
        [(0, 1)],
        [(0, shortest)],
        [(context, 1)] * most,
        _mixed(most, middle, context, max_batch_tokens, max_num_seqs),
        [(0, longest)],
        [(0, middle)],
        [(context, min(middle, max_model_len - context))],
        [(0, 1)] * most,
        _mixed(max(most // 4, 1), shortest, context, max_batch_tokens, max_num_seqs),
        *([(context, 1)] * rows for rows in (1, 2, 4, 8, 16) if rows < most),
    ]
    found: list[list[tuple[int, int]]] = []
    for batch in batches:
        if batch not in found:
            found.append(batch)
    return [_step(batch) for batch in found]


def _mixed(
    decodes: int, prompt: int, context: int, max_batch_tokens: int, max_num_seqs: int
) -> list[tuple[int, int]]:
    """Streams with a prompt beside them, as far as a step has room."""
    decodes = min(decodes, max_num_seqs - 1, max_batch_tokens - 1)
    return [(context, 1)] * decodes + [(0, min(prompt, max_batch_tokens - decodes))]


def _step(batch: Sequence[tuple[int, int]]) -> StepInputs:
    """A step of rows that have (context, more) tokens."""
    context, count = np.array(batch, np.int32).T
    query_start = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
    return StepInputs(
        tokens=np.zeros(query_start[-1], np.int32),
        positions=np.concatenate([np.arange(at, at + more) for at, more in batch]).astype(np.int32),
        query_start=query_start,
        seq_lens=context + count,
        slots=np.arange(len(batch), dtype=np.int32),
        logit_rows=query_start[1:] - 1,
    )


def _work(step: StepInputs) -> tuple[int, int, int, float]:
    counts = np.diff(step.query_start)
    decodes = counts == 1
    chunks, contexts = counts[~decodes].astype(np.float64), (step.seq_lens - counts)[~decodes]
    pairs = float((chunks * (contexts + chunks / 2)).sum())
    return len(step.tokens), len(step.slots), int(step.seq_lens[decodes].sum()), pairs


def _guess_s(step: StepInputs, measured: Iterable[Measured]) -> float:
    """At most how long a step takes, going by those that were measured: no token takes longer in a larger step."""
    tokens = len(step.tokens)
    return min(m.micros * max(tokens / m.work[0], 1.0) for m in measured) / 1e6
