"""How far apart two versions of a model are, by their files: what `auto` bounds of gates go by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from airi.config.fit import local_folder
from airi.config.load import ConfigFile
from airi.config.mistakes import Mistake
from airi.config.options import version_options
from airi.config.rollouts import Gate, first_stable, releases_of
from airi.engine.checkpoint import Checkpoint
from airi.engine.families import load_spec
from airi.errors import AiriError
from airi.lifecycle.gates import Change, widest
from airi.text import tokenizer_sha256

__all__ = ["change_between", "change_mistakes"]


def change_between(stable: Path, candidate: Path, stopped: Callable[[], bool] = lambda: False) -> Change:
    """What a candidate's folder has changed. Reads weights as far as they are the same.

    Raises CheckpointError or ConfigError for a folder that is no model, InterruptedError once it is `stopped`.
    """
    if tokenizer_sha256(stable) != tokenizer_sha256(candidate):
        return Change.NEW_BASE
    if load_spec(stable).family != load_spec(candidate).family:
        return Change.NEW_BASE
    before, after = Checkpoint(stable), Checkpoint(candidate)
    if before.shapes != after.shapes:
        return Change.NEW_BASE
    return Change.SAME_WEIGHTS if before.holds_same(after, stopped) else Change.FINETUNE


def change_mistakes(file: ConfigFile) -> Iterator[Mistake]:
    """Gates that leave a bound to what has changed, where too much has: one line for each line of requests."""
    releases = releases_of(file.config)
    for line, rollout in file.config.rollouts.items():
        at = next(
            (
                (name, i, bound)
                for name, gates in rollout.gates.items()
                for i, gate in enumerate(gates)
                for bound in _autos(gate)
            ),
            None,
        )
        stable = first_stable(file.config, line)
        others = [release for release in releases[line] if release != stable]
        for candidate in others if rollout.candidate is None else [rollout.candidate]:
            if (
                at is not None
                and _change(file, releases[line][stable], releases[line][candidate]) is Change.NEW_BASE
            ):
                accepted = (
                    f"a number: {candidate} has another tokenizer or network than {stable}, "
                    "so nothing can be promised of its tokens"
                )
                yield file.mistake(("rollouts", line, "gates", *at), accepted)
                break


def _autos(gate: Gate) -> list[str]:
    return [bound for bound in ("max", "min") if getattr(gate, bound) == "auto"]


def _change(file: ConfigFile, stable: dict[str, str], candidate: dict[str, str]) -> Change | None:
    """None where it cannot be known here, or there are mistakes that are told of elsewhere."""
    if stable.keys() != candidate.keys():
        return Change.NEW_BASE
    found = []
    for model, version in stable.items():
        if version == candidate[model]:
            continue
        try:
            options = [version_options(file, model, each) for each in (version, candidate[model])]
            before, after = (local_folder(each.path) for each in options)
            if before is None or after is None:
                return None
            found.append(change_between(before, after))
        except AiriError:
            return None
    return widest(found)
