"""Does a rollout find a faulty candidate before it has 5 % of traffic, and does it leave a good one alone?

    python -m benches.bench_faults [--auto] [--identical 20] [--noisy 100] [--seed 0] [--json]

One real engine holds the built-in model as stable, the same files again, the model with as much noise as rounding its
weights to fp8 adds, and a candidate for each fault of `benches.faulty`. Requests are held-out questions to that model,
answered at temperature 1; they take the gateway's own path from draw to answer without HTTP. Counts go through a state;
after each batch gates judge as whoever leads has them judge, by all that was seen and by what was seen at the present
weight, and the machine moves the rollout on, by a clock that is told: shadow, 5 %, 50 %, 100 %.
All of stable's answers are scored while the shadow step runs, where a gateway would score a few percent for longer.

Rows: each candidate by all gates, and by latency and errors alone; then rollouts of identical weights, each with its
own questions. This engine always reads the same weights the same way, which leaves gates on tokens nothing to judge; so
as many have a candidate with as much noise as rounding to bf16 once more adds, which gates take for the same weights:
it stands for what other kernels do. `found` is that the rollout was rolled back, `at_percent` the most traffic that the
candidate had. One that still holds after 60 batches is neither found nor through.

Bounds stand below and are the same for all. With `--auto` gates on tokens have those of `airi.lifecycle.gates.AUTO`
instead, which go by what the files of a candidate have changed; one whose tokenizer is another is refused before it
begins. A candidate that was trained a little further has to pass then, too.

What this does not mean: a larger model has other figures, and noise that it shrugs off is no fault; questions of one
kind say nothing of others; what no scored answer touches is not seen.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from airi import builtin
from airi.config.changes import change_between
from airi.engine.options import EngineOptions, ModelOptions
from airi.errors import AiriError
from airi.gateway.generation import Generation
from airi.gateway.http import CallRecord
from airi.gateway.metrics import Metrics, now
from airi.gateway.models import ServedModel, serve_models
from airi.gateway.observing import Observing, SeenByAll
from airi.gateway.openai.schemas_common import TokenizeRequest
from airi.gateway.prompts import render_chat
from airi.gateway.scoring import Scorer
from airi.gateway.watching import Sight, Trial, Watching
from airi.lifecycle.gates import Bound, Change, Gate, Metric
from airi.lifecycle.judging import findings_of
from airi.lifecycle.machine import Candidate, advance, start
from airi.lifecycle.observed import Seen
from airi.lifecycle.rollouts import Analysis, Line, Pause, Phase, Rollout, SetWeight, Shadow
from airi.policy import ANYONE
from airi.sampling_params import SamplingParams
from airi.transport import EngineSupervisor
from benches.common import plain_parser, print_rows
from benches.faulty import FAULTS, write_candidate
from tests.lifecycle.world import MemoryState
from tools.demo_model.generate import Skill
from tools.demo_model.scoring import held_out_examples

BATCH = 20
"""Requests at once, between two looks of the gates."""
MOST_BATCHES = 60
SECOND_MS = 1000
MOST_PROMPT_CHARACTERS = 240
MAX_TOKENS = 40

STABLE, CANDIDATE = "1", "2"
STEPS = (
    Shadow(percent=100, duration_s=1),
    SetWeight(weight=5),
    Pause(duration_s=1),
    SetWeight(weight=50),
    Analysis(gates=("latency",)),
    SetWeight(weight=100),
)
BLIND: dict[str, tuple[Gate, ...]] = {
    "latency": (
        Gate(metric=Metric.TTFT, bound=Bound.REGRESSION, value=1.0, quantile=0.5, min_samples=15),
        Gate(metric=Metric.ITL, bound=Bound.REGRESSION, value=1.0, quantile=0.5, min_samples=15),
        Gate(metric=Metric.ERRORS, bound=Bound.REGRESSION_POINTS, value=0.01, min_samples=15),
    )
}
ALL: dict[str, tuple[Gate, ...]] = {
    **BLIND,
    "tokens": (
        Gate(metric=Metric.NLL_DELTA, bound=Bound.MAX, value=0.002, min_samples=100),
        Gate(metric=Metric.AGREEMENT, bound=Bound.MIN, value=0.99, min_samples=100),
    ),
    "output": (
        Gate(metric=Metric.LENGTH, bound=Bound.REGRESSION_POINTS, value=0.05, min_samples=15),
        Gate(metric=Metric.REPETITION, bound=Bound.REGRESSION_POINTS, value=0.05, min_samples=15),
    ),
}

BY_CHANGE: dict[str, tuple[Gate, ...]] = {
    **ALL,
    "tokens": tuple(msgspec.structs.replace(gate, value=0.0, is_auto=True) for gate in ALL["tokens"]),
}

Messages = list[dict[str, str]]


class Ended(NamedTuple):
    """How a rollout ended, or that it did not."""

    rollout: Rollout
    requests: int
    percent: float
    """The most traffic that the candidate had."""
    stable: Seen
    candidate: Seen


class Course:
    """One rollout from its start to its end."""

    def __init__(
        self,
        stable: ServedModel,
        candidate: ServedModel,
        gates: dict[str, tuple[Gate, ...]],
        seed: str,
        change: Change | None = None,
    ) -> None:
        self._change = change
        self._models = {STABLE: stable, CANDIDATE: candidate}
        rollout = Rollout(
            id=f"{candidate.name} {seed}", stable=STABLE, candidate=CANDIDATE, steps=STEPS, gates=gates
        )
        begun = start(Line(name="demo", stable=STABLE), rollout, 0)
        self._line = advance(begun, 0, Candidate(is_ready=True), {})
        state = MemoryState()
        self._observing, self._seen_by_all = Observing(state), SeenByAll(state)
        self._watching = Watching(self._observing, Scorer(most=BATCH), self._trial_of)
        self._draw = random.Random(seed)
        self._releases: dict[str, str] = {}
        self._asked = 0

    @property
    def _rollout(self) -> Rollout:
        if self._line.rollout is None:
            raise RuntimeError("it was never started")
        return self._line.rollout

    async def run(self, questions: list[Messages]) -> Ended:
        """Until it has ended, or has been asked enough."""
        percent, stable, tried = 0.0, Seen(), Seen()
        for batch in range(1, MOST_BATCHES + 1):
            await asyncio.gather(*(self._ask(self._draw.choice(questions)) for _ in range(BATCH)))
            while self._watching.scorer.num_running:
                await asyncio.sleep(0.001)
            await self._observing.flush()
            before = None
            while before is not self._line and not self._rollout.phase.ended:
                before = self._line
                stable, tried = await self._look(batch * SECOND_MS)
            percent = max(percent, self._rollout.weight)
            if self._rollout.phase.ended:
                break
        return Ended(self._rollout, self._asked, percent, stable, tried)

    async def _look(self, now_ms: int) -> tuple[Seen, Seen]:
        """As `LifecycleController` looks; what was seen since the rollout began."""
        rollout = self._rollout
        whole = await self._seen_by_all.of(rollout)
        present = await self._seen_by_all.of(rollout, at_weight=True)
        findings = findings_of(rollout, whole, present, self._change)
        self._line = advance(self._line, now_ms, Candidate(is_ready=True), findings)
        return whole

    def _trial_of(self, record: CallRecord, _: ServedModel) -> Trial:
        return Trial(self._rollout, self._releases[record.request_id], self._models[CANDIDATE])

    async def _ask(self, messages: Messages) -> None:
        self._asked += 1
        record = CallRecord(request_id=f"{self._asked}", started=now())
        release = self._releases[record.request_id] = self._line.split.draw(record.request_id)
        model = self._models[release]
        sight = self._watching.sight(record, model, lambda: True)
        params = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, seed=self._draw.getrandbits(32))
        generation = Generation(model, ANYONE, arrived=record.started, sight=sight)
        try:
            async with generation:
                await self._answer(generation, messages, params, sight)
        except AiriError as error:
            if sight is not None:
                sight.error = error
        if sight is not None:
            sight.ended()

    async def _answer(
        self, generation: Generation, messages: Messages, params: SamplingParams, sight: Sight | None
    ) -> None:
        if sight is not None:
            sight.prompt_for = partial(prompt_of, messages)
        generation.add(
            await prompt_of(messages, generation.model),
            params,
            priority=None,
            cache_salt=secrets.token_hex(8),
        )
        generation.begin()
        while not generation.done:
            await generation.take(per_token=True)


async def prompt_of(messages: Messages, model: ServedModel) -> list[int]:
    """A chat as a model is given it."""
    return await render_chat(model, messages, TokenizeRequest(), field="messages")


def row_of(name: str, gates: str, ended: Ended, *, is_fault: bool) -> dict[str, Any]:
    """What became of one candidate."""
    rollout, tried = ended.rollout, ended.candidate
    found = rollout.phase is Phase.ABORTED
    by = rollout.events[-1].what if found else ""
    expected = found and ended.percent < 5 if is_fault and gates in ("all", "auto") else not found
    return {
        "question": f"candidate {name}, by {gates} gates",
        "found": found,
        "phase": rollout.phase.value,
        "at_percent": ended.percent,
        "requests": ended.requests,
        "scored": tried.nll_delta.answers,
        "nll_delta": round(tried.nll_delta.mean, 5),
        "top1_agreement": round(tried.agreement.mean, 4),
        "reached": expected and (found or rollout.phase is Phase.COMPLETED),
        "by": by,
    }


def refused(name: str, change: Change) -> dict[str, Any]:
    """Of a candidate that `airi check` finds."""
    return {
        "question": f"candidate {name}, by auto gates",
        "found": True,
        "phase": "refused",
        "at_percent": 0.0,
        "requests": 0,
        "reached": True,
        "by": f"auto promises nothing for {change}",
    }


async def same_weights_row(
    stable: ServedModel, candidate: ServedModel, questions: list[Messages], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Of many rollouts of the same weights, as they are or `noisy`."""
    is_noisy = candidate.name == "noisy"
    gates, change = (BY_CHANGE, Change.SAME_WEIGHTS) if arguments.auto else (ALL, None)
    ends = []
    for number in range(arguments.noisy if is_noisy else arguments.identical):
        seed = f"{candidate.name} {arguments.seed} {number}"
        ends.append(await Course(stable, candidate, gates, seed, change).run(questions))
    phases = [end.rollout.phase for end in ends]
    alarms = [end.rollout.events[-1].what for end in ends if end.rollout.phase is Phase.ABORTED]
    furthest = max(abs(end.candidate.nll_delta.total) for end in ends)
    what = "identical weights and numerical noise" if is_noisy else "identical weights"
    return {
        "question": f"rollouts with {what}, by {'auto' if arguments.auto else 'all'} gates",
        "rollouts": len(ends),
        "false_alarms": len(alarms),
        "by": "; ".join(alarms),
        "completed": phases.count(Phase.COMPLETED),
        "requests": sum(end.requests for end in ends),
        "scored": sum(end.candidate.nll_delta.answers for end in ends),
        "unscored": sum(end.candidate.unscored + end.candidate.dropped for end in ends),
        "largest_nll_delta": furthest,
        "seed": arguments.seed,
        "reached": not alarms and (furthest > 0.0) == is_noisy,
    }


async def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows."""
    folder = arguments.work.resolve() / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    changed = ("fp8", "finetune", *FAULTS) if arguments.auto else ("fp8", *FAULTS)
    names = ("identical", "noisy", *changed)
    hosted = [ModelOptions(path=str(write_candidate(name, folder)), name=name) for name in names]
    options = EngineOptions(
        models=(ModelOptions(path=str(builtin.path()), name="stable"), *hosted),
        device="cpu",
        kv_memory=256 << 20,
    )
    examples = held_out_examples(arguments.seed, 150)
    questions = [
        example.messages
        for example in examples
        if example.reply.skill is not Skill.EXTRACT
        and sum(len(message["content"]) for message in example.messages) <= MOST_PROMPT_CHARACTERS
    ]
    supervisor = EngineSupervisor(options)
    client = await supervisor.start()
    rows = []
    try:
        models = {model.name: model for model in serve_models(client, Metrics("bench"))}
        judged = (("auto", BY_CHANGE),) if arguments.auto else (("all", ALL), ("latency and error", BLIND))
        for gates, bounds in judged:
            for name in changed if arguments.faults else ():
                change = change_between(builtin.path(), folder / name) if arguments.auto else None
                if change is Change.NEW_BASE:
                    rows.append(refused(name, change))
                    continue
                course = Course(models["stable"], models[name], bounds, f"{arguments.seed}", change)
                rows.append(row_of(name, gates, await course.run(questions), is_fault=name in FAULTS))
        for name, wanted in (("identical", arguments.identical), ("noisy", arguments.noisy)):
            if wanted:
                rows.append(await same_weights_row(models["stable"], models[name], questions, arguments))
    finally:
        await supervisor.stop()
    return rows


def main() -> None:
    """Measures and prints."""
    parser = plain_parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where candidates are kept")
    parser.add_argument("--identical", type=int, default=20, help="rollouts of identical weights")
    parser.add_argument("--noisy", type=int, default=100, help="such rollouts with numerical noise")
    parser.add_argument("--no-faults", dest="faults", action="store_false", help="only identical weights")
    parser.add_argument("--auto", action="store_true", help="bounds by what a candidate has changed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print_rows(asyncio.run(measure(arguments)), as_json=arguments.json)


if __name__ == "__main__":
    main()
