"""A config's forbidden texts as sets: which hold for whose answers, and what is wrong with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from airi.config.document import Path
from airi.config.load import ConfigFile
from airi.config.mistakes import Mistake
from airi.config.options import model_path
from airi.config.rules import ForbidRule
from airi.errors import ConfigError, ConfigFileError

if TYPE_CHECKING:
    from airi.forbidden import ForbiddenPattern
    from airi.policy.forbidden import ForbiddenPolicy

__all__ = ["ForbiddenTable", "check_forbidden", "forbidden_mistakes", "forbidden_notes"]


class ForbiddenTable:
    """Finds what an answer may not hold by whom it is for and which model it is of.

    Rules that hold together are one set. All sets are made at once: an engine is told of them before they are named.
    """

    def __init__(self, file: ConfigFile) -> None:
        """Raises ConfigFileError for rules that make no automaton."""
        check_forbidden(file)
        config = file.config
        names = {alias: model.name for model in config.models for alias in model.aliases}
        self._rules = [
            (rule, {names.get(name, name) for name in rule.models}, tuple(_patterns(file, rule)))
            for rule in config.content.forbid
        ]
        self._models = [
            model.name for model in config.models if model.upstream is None and model.task == "chat"
        ]
        self._tenants = {tenant.name for tenant in config.tenants}
        self._made: dict[tuple[int, ...], ForbiddenPolicy] = {}
        for tenant in (*self._tenants, ""):
            for model in self._models:
                self.find(tenant=tenant, model=model)

    def find(self, *, tenant: str, model: str) -> ForbiddenPolicy | None:
        """What answers to a tenant may not hold, `model` being a name and no alias; None where anything goes."""
        from airi.forbidden import ForbiddenSet
        from airi.policy.forbidden import ForbiddenPolicy

        holding = tuple(
            i
            for i, (rule, models, _) in enumerate(self._rules)
            if (not rule.tenants or tenant in rule.tenants) and (not models or model in models)
        )
        if not holding:
            return None
        if holding not in self._made:
            patterns = tuple(each for i in holding for each in self._rules[i][2])
            self._made[holding] = ForbiddenPolicy(ForbiddenSet(patterns))
        return self._made[holding]

    def sets(self) -> list[tuple[ForbiddenPolicy, tuple[str, ...]]]:
        """Every set there is, with the models whose answers it may be asked about."""
        found: dict[bytes, tuple[ForbiddenPolicy, list[str]]] = {}
        for model in self._models:
            for tenant in (*sorted(self._tenants), ""):
                policy = self.find(tenant=tenant, model=model)
                if policy is not None:
                    models = found.setdefault(policy.digest, (policy, []))[1]
                    models += [model] if model not in models else []
        return [(policy, tuple(models)) for policy, models in found.values()]


def check_forbidden(file: ConfigFile) -> None:
    """Raises ConfigFileError with a line for each mistake in a config's forbidden texts."""
    mistakes = forbidden_mistakes(file)
    if mistakes:
        raise ConfigFileError(mistakes)


def forbidden_mistakes(file: ConfigFile) -> list[Mistake]:
    """Rules that make no automaton, or ask for what masks of tokens cannot know."""
    mistakes: list[Mistake] = []
    patterns: list[ForbiddenPattern] = []
    for i, rule in enumerate(file.config.content.forbid):
        mistakes += _rule_mistakes(file, ("content", "forbid", i), rule)
        patterns += [] if mistakes else _patterns(file, rule)
    reason = None if mistakes else _problem(patterns)
    if reason is not None:
        accepted = f"rules that fit one automaton ({file.masked(reason)})"
        mistakes.append(file.mistake(("content", "forbid"), accepted))
    return mistakes


def forbidden_notes(file: ConfigFile) -> tuple[str, ...]:
    """What each set takes: states, and time for masks where the model's tokenizer is at hand.

    Raises ConfigFileError for a model whose tokens cannot be masked.
    """
    paths = {
        model.name: FilePath(model_path(file, model))
        for model in file.config.models
        if model.upstream is None
    }
    notes = []
    for policy, models in ForbiddenTable(file).sets():
        automaton = policy.automaton
        for model in models:
            note = f"forbidden texts for {model}: {automaton.num_patterns} patterns, {automaton.num_states} states"
            if (paths[model] / "tokenizer.json").is_file():
                try:
                    note += _mask_cost(policy, paths[model])
                except ConfigError as error:
                    raise ConfigFileError([file.mistake(("content", "forbid"), str(error))]) from None
            notes.append(note)
    return tuple(dict.fromkeys(notes))


def _mask_cost(policy: ForbiddenPolicy, path: FilePath) -> str:
    import numpy as np

    from airi.engine.constraints.forbidden import Shown, Vocabulary
    from airi.text import Tokenizer

    vocabulary = Vocabulary.load(path, Tokenizer.load(path).vocab_size)
    began = time.perf_counter()
    masks = vocabulary.masks(policy.automaton, Shown())
    made = time.perf_counter()
    masks.fill(masks.after(), np.zeros(masks.num_words, np.uint32))
    first_us = (time.perf_counter() - made) * 1e6
    return (
        f"; masks of {vocabulary.size} tokens take {(made - began) * 1e3:.0f} ms, the first {first_us:.0f} us"
    )


def _rule_mistakes(file: ConfigFile, at: Path, rule: ForbidRule) -> Iterator[Mistake]:
    from airi.policy.forbidden import checked_detectors, forbidden_patterns

    wrong = False
    for k, detector in enumerate(rule.detectors):
        checked = checked_detectors(detector)
        if checked:
            wrong = True
            accepted = f"detectors without check digits, which no mask of tokens can ask for; {' and '.join(checked)}"
            yield file.mistake((*at, "detectors", k), f"{accepted} can be a rule of content.output")
    for k, regex in enumerate(rule.regexes):
        reason = _problem(list(forbidden_patterns(rule.name, regexes=[regex])))
        if reason is not None:
            wrong = True
            yield file.mistake((*at, "regexes", k), f"a regular expression of those that AIRI has ({reason})")
    reason = None if wrong else _problem(list(_patterns(file, rule)))
    if reason is not None:
        yield file.mistake(at, f"a rule that fits an automaton ({file.masked(reason)})")


def _patterns(file: ConfigFile, rule: ForbidRule) -> Iterator[ForbiddenPattern]:
    from airi.policy.forbidden import forbidden_patterns

    return forbidden_patterns(
        rule.name,
        detectors=rule.detectors,
        words=file.words(rule),
        regexes=rule.regexes,
        ignore_case=rule.ignore_case,
    )


def _problem(patterns: list[ForbiddenPattern]) -> str | None:
    from airi.forbidden import ForbiddenSet

    if not patterns:
        return None
    try:
        ForbiddenSet(tuple(patterns)).automaton()
    except ConfigError as error:
        return str(error).removeprefix("forbidden texts: ")
    return None
