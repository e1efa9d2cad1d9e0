"""`releases` and `rollouts`: which versions go together, and how traffic moves from one release to the next."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from airi.config.values import Name, Part, Seconds, Text, Whole, accepts, mistaken

if TYPE_CHECKING:
    from airi.config.schema import Config
    from airi.lifecycle.gates import Gate as LifecycleGate
    from airi.lifecycle.operators import Plan
    from airi.lifecycle.rollouts import Step as LifecycleStep

__all__ = [
    "AUTO",
    "MORE_IS_BETTER",
    "SCORED",
    "SPACE",
    "Gate",
    "Members",
    "Releases",
    "Rollout",
    "Step",
    "first_stable",
    "gates_of",
    "releases_of",
    "steps_of",
]

_METRICS = ("ttft_ms", "itl_ms", "token.first_divergence")
"""Those that have quantiles."""
_SHARES = (
    "error_rate",
    "token.nll_delta",
    "token.top1_agreement",
    "retrieval.overlap",
    "output.finish_length_rate",
    "output.repetition_rate",
    "output.json_valid_rate",
    "output.schema_valid_rate",
)
_ALL_METRICS = ", ".join(["ttft_ms.p95", "itl_ms.p95", "token.first_divergence.p5", *_SHARES])
SCORED = ("token.", "retrieval.")
"""With which figures begin that a step of shadow makes."""
MORE_IS_BETTER = (
    "token.top1_agreement",
    "token.first_divergence",
    "retrieval.overlap",
    "output.json_",
    "output.schema_",
)
AUTO = {"max": "token.nll_delta", "min": "token.top1_agreement"}
"""What `auto` may bound, by the bound."""
_QUANTILE = re.compile(r"(.+)\.p(\d{1,2}(?:\.\d{1,3})?)")
_WORSE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?) ?(%|pp)")


def _check_metric(metric: str) -> str:
    match = _QUANTILE.fullmatch(metric)
    if match is None and metric not in _SHARES:
        raise mistaken(f"one of: {_ALL_METRICS}; times have a quantile such as p95 or p50")
    if match is not None and (match[1] not in _METRICS or not float(match[2])):
        raise mistaken(f"one of: {_ALL_METRICS}")
    return metric


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


class _OneOrMore:
    """Metadata of a list that `_as_list` makes of one item: the schema has both."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        return {"anyOf": [schema["items"], schema]}


def _check_worse(value: str) -> str:
    if not _WORSE.fullmatch(value):
        raise mistaken("how much worse, such as 10% of stable's figure, or 2pp: percentage points of a share")
    return value


Metric = Annotated[str, Field(max_length=64), AfterValidator(_check_metric)]
Worse = Annotated[
    str,
    accepts("how much worse, such as 10% of stable's figure, or 2pp: percentage points of a share"),
    AfterValidator(_check_worse),
]
Bound = Annotated[float | Literal["auto"], accepts("a number, or auto")]
Percent = Annotated[float, Field(ge=0, le=100), accepts("percent, from 0 to 100")]


class Gate(Part):
    """A figure of the candidate, and what it must be."""

    later: ClassVar[tuple[str, ...]] = ("when", "eval", "scorer", "min_score", "confidence")

    metric: Metric
    """What is looked at, such as ttft_ms.p95, error_rate or token.nll_delta."""
    vs: Literal["stable"] | None = None
    """What max_regression is measured from: the stable release."""
    max: Bound | None = None
    """The figure is at most this; `auto`, of token.nll_delta: by what the candidate has changed."""
    min: Bound | None = None
    """The figure is at least this; `auto`, of token.top1_agreement: by what the candidate has changed."""
    max_regression: Worse | None = None
    """How much worse than stable's it may be: 10% of that, or 2pp, percentage points."""
    min_samples: Annotated[int, Whole(1)] = 100
    """Requests, or scored answers, below which it does not pass."""


class Shadow(Part):
    """The candidate reads what stable has answered; nobody gets its answers."""

    percent: Annotated[float, Field(gt=0, le=100), accepts("percent, above 0 up to 100")]
    """How many of stable's answers are scored."""
    method: Literal["score"] = "score"
    """How: the candidate says how likely it finds them."""
    duration: Seconds
    """At least; longer while the gates on tokens have too little to tell."""


class Pause(Part):
    """Waits."""

    duration: Seconds | None = None
    """How long; left out: until somebody promotes."""


class Step(Part):
    """A step of a rollout: one of these."""

    shadow: Shadow | None = None
    """Scores stable's answers by the candidate."""
    set_weight: Percent | None = None
    """The candidate gets so many percent of new requests."""
    pause: Pause | None = None
    """Waits for a time, or for somebody to promote."""
    analysis: tuple[Text, ...] | None = Field(default=None, strict=False, min_length=1)
    """Goes on once these gates pass."""


class Rollout(Part):
    """How a line of requests moves from one release to the next."""

    later: ClassVar[tuple[str, ...]] = ("simulate",)

    stable: Name | None = None
    """The release that serves when the line is first served; left out: the first one."""
    candidate: Name | None = None
    """The release that `airi rollout start` tries unless told otherwise."""
    steps: Annotated[tuple[Step, ...], Field(strict=False, min_length=1)]
    """One after the other; the candidate is stable behind the last one."""
    on_failure: Literal["rollback", "hold", "notify"] = "rollback"
    """What a gate that fails leads to."""
    gates: Mapping[
        Name,
        Annotated[
            tuple[Gate, ...],
            Field(strict=False, min_length=1),
            BeforeValidator(_as_list),
            _OneOrMore(),
        ],
    ] = Field(default_factory=dict)
    """Gates, or lists of them, by the names that analysis gives. One that fails ends the rollout at any time."""


SPACE = "space:"
"""Before the version of its embedder, what a release says of a collection."""
Members = Mapping[Name, Name]
Releases = Mapping[Name, Mapping[Name, Members]]


def releases_of(config: Config) -> dict[str, dict[str, dict[str, str]]]:
    """By line and id, the version of each model: what `releases` says, and one per version where it says nothing.

    Spaces of collections are not among them: each is that of its embedder's version.
    """
    found = {
        line: {
            release: {name: id for name, id in members.items() if not id.startswith(SPACE)}
            for release, members in releases.items()
        }
        for line, releases in config.releases.items()
    }
    for model in config.versioned:
        found.setdefault(model.name, {version.id: {model.name: version.id} for version in model.versions})
    return found


def first_stable(config: Config, line: str) -> str:
    """The release that a line is served with when it is first served."""
    rollout = config.rollouts.get(line)
    return (rollout and rollout.stable) or next(iter(releases_of(config)[line]))


def steps_of(rollout: Rollout) -> tuple[LifecycleStep, ...]:
    """The steps as the rollout's document has them."""
    return tuple(_step(step) for step in rollout.steps)


def _step(step: Step) -> LifecycleStep:
    from airi.lifecycle import rollouts as made

    if step.shadow is not None:
        return made.Shadow(percent=step.shadow.percent, duration_s=step.shadow.duration)
    if step.set_weight is not None:
        return made.SetWeight(weight=step.set_weight)
    if step.analysis is not None:
        return made.Analysis(gates=step.analysis)
    return made.Pause(duration_s=None if step.pause is None else step.pause.duration)


def gates_of(rollout: Rollout) -> dict[str, tuple[LifecycleGate, ...]]:
    """The gates as the rollout's document has them."""
    return {name: tuple(_gate(gate) for gate in gates) for name, gates in rollout.gates.items()}


def _gate(gate: Gate) -> LifecycleGate:
    from airi.lifecycle.gates import Bound as Kind
    from airi.lifecycle.gates import Gate as Made
    from airi.lifecycle.gates import Metric as Kinds

    match = _QUANTILE.fullmatch(gate.metric)
    metric = Kinds(gate.metric if match is None else match[1])
    quantile = 0.95 if match is None else float(match[2]) / 100
    bound, value = bound_of(gate)
    return Made(
        metric=metric,
        bound=Kind(bound),
        value=0.0 if value == "auto" else float(value),
        is_auto=value == "auto",
        quantile=quantile,
        min_samples=gate.min_samples,
    )


def plan_of(config: Config, line: str) -> Plan:
    """How rollouts of a line go. Raises ConfigError where the config does not say."""
    from airi.errors import ConfigError
    from airi.lifecycle.operators import Plan
    from airi.lifecycle.rollouts import OnFailure

    rollout = config.rollouts.get(line)
    if rollout is None:
        known = ", ".join(config.rollouts) or "none"
        raise ConfigError(
            f"line is {line!r}, of which the config's rollouts say no steps; they do of: {known}",
            field="line",
        )
    return Plan(rollout.candidate, steps_of(rollout), gates_of(rollout), OnFailure(rollout.on_failure))


def bound_of(gate: Gate) -> tuple[str, float | str]:
    """What bounds a gate's figure: max, min, max_regression or max_regression_points, and the number or auto."""
    if gate.max_regression is not None:
        match = _WORSE.fullmatch(gate.max_regression)
        assert match is not None  # noqa: S101
        kind = "max_regression" if match[2] == "%" else "max_regression_points"
        return kind, float(match[1]) / 100
    return ("max", gate.max) if gate.max is not None else ("min", gate.min or 0.0)


def has_quantile(gate: Gate) -> bool:
    """Whether its figure is a time or a number of tokens, and no share."""
    return _QUANTILE.fullmatch(gate.metric) is not None


def stage_names(step: Step) -> Iterator[str]:
    """What a step is said to be."""
    return (name for name in Step.model_fields if getattr(step, name) is not None)
