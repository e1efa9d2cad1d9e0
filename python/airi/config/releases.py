"""What versions, releases and rollouts of a config say of each other."""

from __future__ import annotations

from collections.abc import Callable

from airi.config.document import Path
from airi.config.models import Model
from airi.config.rollouts import (
    AUTO,
    MORE_IS_BETTER,
    SCORED,
    SPACE,
    Rollout,
    bound_of,
    first_stable,
    has_quantile,
    releases_of,
    stage_names,
)
from airi.config.schema import Config

__all__ = ["wrong_releases"]

_Report = Callable[..., None]


def wrong_releases(config: Config, report: _Report) -> None:
    """Reports every version, release and rollout that does not fit the others."""
    for i, model in enumerate(config.models):
        _versions(config, model, ("models", i), report)
    models = {model.name: model for model in config.models}
    lines = {name: model for model in config.models for name in (model.name, *model.aliases)}
    sound = True
    for line, releases in config.releases.items():
        if line not in lines:
            report(("releases", line), f"the name or an alias of a model: {', '.join(lines)}", value="given")
            sound = False
            continue
        if not releases:
            report(("releases", line), "one release at least")
            sound = False
        for release, members in releases.items():
            at: Path = ("releases", line, release)
            spaces = {name: id for name, id in members.items() if id.startswith(SPACE)}
            versions = {name: id for name, id in members.items() if name not in spaces}
            sound &= _members(models, lines[line], versions, at, report)
            sound &= _spaces(config, versions, spaces, at, report)
    for line, rollout in config.rollouts.items():
        served = {*config.releases, *(model.name for model in config.versioned)}
        if line not in served:
            known = ", ".join(sorted(served)) or "none, as no model has several versions"
            report(("rollouts", line), f"what has releases: {known}", value="given")
        elif sound:
            _rollout(config, line, rollout, report)


def _versions(config: Config, model: Model, at: Path, report: _Report) -> None:
    ids = [version.id for version in model.versions]
    parallel = config.engine.tensor_parallel_size or model.engine.tensor_parallel_size or 1
    if model in config.versioned and parallel > 1:
        report((*at, "versions"), "one that no release names, with tensor_parallel_size above 1")
    known = {other.name: [version.id for version in other.versions] for other in config.models}
    for k, version in enumerate(model.versions):
        here: Path = (*at, "versions", k)
        if version.id in ids[:k]:
            report((*here, "id"), "an id that no other version of the model has")
        if "@" in version.id or "/" in version.id:
            report((*here, "id"), "an id without @ and /")
        for name, fitting in version.compatible_with.items():
            if name not in known:
                report((*here, "compatible_with", name), f"a model: {', '.join(known)}", value="given")
            for j, id in enumerate(fitting):
                if id not in known.get(name, (id,)):
                    versions = ", ".join(known[name]) or "none"
                    report((*here, "compatible_with", name, j), f"a version of {name}: {versions}")


def _members(models: dict[str, Model], own: Model, given: dict[str, str], at: Path, report: _Report) -> bool:
    """Whether a release of a line whose model is `own` holds together."""
    sound = True
    if own.name not in given:
        report(at, f"a version of {own.name}, which the line is served with", value="without it")
        sound = False
    for name, id in given.items():
        versions = [version.id for version in models[name].versions] if name in models else []
        if not versions:
            having = ", ".join(model.name for model in models.values() if model.versions) or "none"
            report((*at, name), f"models with versions: {having}", value="given")
            sound = False
        elif id not in versions:
            report((*at, name), f"a version of {name}: {', '.join(versions)}")
            sound = False
    if sound:
        wrong = _misfits(models, given)
        if wrong:
            report(at, f"members that fit together ({'; '.join(wrong)})", value="given")
    return sound


def _spaces(
    config: Config, versions: dict[str, str], spaces: dict[str, str], at: Path, report: _Report
) -> bool:
    """Whether the spaces of collections in a release are those of its embedders' versions."""
    sound = True
    collections = {each.name: each for each in config.collections}
    names = {name: model.name for model in config.models for name in (model.name, *model.aliases)}
    for name, space in spaces.items():
        if name not in collections:
            known = ", ".join(collections) or "none"
            report((*at, name), f"collections: {known}", value="given")
            sound = False
            continue
        embedder = names.get(collections[name].embedder, collections[name].embedder)
        if embedder not in versions:
            report((*at, name), f"with a version of {embedder}, its embedder, beside it", value="given")
            sound = False
        elif space != f"{SPACE}{versions[embedder]}":
            report((*at, name), f"{SPACE}{versions[embedder]}, by the release's version of {embedder}")
            sound = False
    return sound


def _misfits(models: dict[str, Model], members: dict[str, str]) -> list[str]:
    from airi.lifecycle import misfits

    versions = [
        version.known_as(name, digest="")
        for name, id in members.items()
        for version in models[name].versions
        if version.id == id
    ]
    return misfits(versions)


def _rollout(config: Config, line: str, rollout: Rollout, report: _Report) -> None:
    at: Path = ("rollouts", line)
    known = list(releases_of(config)[line])
    for key in ("stable", "candidate"):
        given = getattr(rollout, key)
        if given is not None and given not in known:
            report((*at, key), f"a release of {line}: {', '.join(known)}")
    stable = first_stable(config, line)
    if rollout.candidate is not None and rollout.candidate == stable:
        others = ", ".join(release for release in known if release != stable) or "none, it has no other"
        report((*at, "candidate"), f"another release than stable: {others}")
    for i, step in enumerate(rollout.steps):
        kinds = list(stage_names(step))
        if len(kinds) != 1:
            accepted = "one of shadow, set_weight, pause: {} and analysis"
            report((*at, "steps", i), accepted, value=" and ".join(kinds) or "none")
        has_scores = any(earlier.shadow is not None for earlier in rollout.steps[:i])
        for k, name in enumerate(step.analysis or ()):
            here: Path = (*at, "steps", i, "analysis", k)
            if name not in rollout.gates:
                report(here, f"one of gates: {', '.join(rollout.gates) or 'none'}")
            elif not has_scores and any(gate.metric.startswith(SCORED) for gate in rollout.gates[name]):
                report(here, "gates on what is scored behind a step of shadow: there is none before it")
    for name, gates in rollout.gates.items():
        for i, gate in enumerate(gates):
            bounds = [key for key in ("max", "min", "max_regression") if getattr(gate, key) is not None]
            where: Path = (*at, "gates", name, i)
            if len(bounds) != 1:
                said = " and ".join(bounds) or "no bound"
                report(where, "one of max, min and max_regression", value=said)
            elif bound_of(gate)[1] == "auto" and gate.metric != AUTO[bounds[0]]:
                autos = " and ".join(f"{bound} of {metric}" for bound, metric in AUTO.items())
                report((*where, bounds[0]), f"a number: auto is for {autos}")
            elif bound_of(gate)[0] == "max_regression_points" and has_quantile(gate):
                report(
                    (*where, "max_regression"), "a percentage such as 10%: percentage points are of shares"
                )
            elif bounds[0] == "max_regression" and gate.metric.startswith(SCORED):
                report(
                    (*where, "max_regression"), f"max or min: {gate.metric} is measured from stable already"
                )
            elif bounds[0] == ("max" if gate.metric.startswith(MORE_IS_BETTER) else "min"):
                bound, better = ("min", "more") if bounds[0] == "max" else ("max", "less")
                report(
                    (*where, bounds[0]), f"{bound} or max_regression, as {better} of {gate.metric} is better"
                )
