"""A config's content rules as automata: which hold for whose texts, and what is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from airi.config.document import Path
from airi.config.load import ConfigFile
from airi.config.mistakes import Mistake
from airi.config.reload import Prepared
from airi.config.rules import ContentRule as GivenRule
from airi.errors import ConfigError, ConfigFileError

if TYPE_CHECKING:
    from airi.policy.content import ContentRule, ContentRules

__all__ = ["ContentPart", "ContentTable", "Side", "check_content", "content_mistakes"]

Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = ("input", "output")


class ContentTable:
    """Finds the rules for a text by who sends it and to which model. Rules that hold together share an automaton.

    *Thread safety*: none; one event loop.
    """

    def __init__(self, file: ConfigFile) -> None:
        """Raises ConfigFileError for rules that make no automaton."""
        check_content(file)
        self._given = {side: tuple(getattr(file.config.content, side)) for side in SIDES}
        self._made = {side: tuple(_rule(file, rule) for rule in self._given[side]) for side in SIDES}
        self._names = {alias: model.name for model in file.config.models for alias in model.aliases}
        self._found: dict[tuple[Side, str, str], tuple[ContentRules | None, tuple[GivenRule, ...]]] = {}
        # All at once: tables of long lists take seconds, which no call should wait for.
        for tenant in [*(tenant.name for tenant in file.config.tenants), "anyone"]:
            for model in file.config.models:
                for side in SIDES:
                    self._find(side, tenant, model.name)

    def rules(self, side: Side, *, tenant: str, model: str) -> ContentRules | None:
        """What a text is scanned with, `model` being a name and no alias; None where no rule holds for it."""
        return self._find(side, tenant, model)[0]

    def judges(self, side: Side, *, tenant: str, model: str) -> tuple[GivenRule, ...]:
        """The rules whose model is to be asked about a text."""
        return self._find(side, tenant, model)[1]

    def _find(self, side: Side, tenant: str, model: str) -> tuple[ContentRules | None, tuple[GivenRule, ...]]:
        key = (side, tenant, model)
        if key not in self._found:
            holding = [i for i, rule in enumerate(self._given[side]) if self._holds(rule, tenant, model)]
            scanned = tuple(rule for i in holding if (rule := self._made[side][i]) is not None)
            judges = tuple(self._given[side][i] for i in holding if self._given[side][i].judge is not None)
            self._found[key] = _automaton(scanned) if scanned else None, judges
        return self._found[key]

    def _holds(self, rule: GivenRule, tenant: str, model: str) -> bool:
        models = [self._names.get(name, name) for name in rule.models]
        return (not rule.tenants or tenant in rule.tenants) and (not models or model in models)


def check_content(file: ConfigFile) -> None:
    """Raises ConfigFileError with a line for each mistake in a config's content rules."""
    mistakes = content_mistakes(file)
    if mistakes:
        raise ConfigFileError(mistakes)


def content_mistakes(file: ConfigFile) -> list[Mistake]:
    """Rules that make no automaton: expressions beyond what it can do, or too many together."""
    if not any(getattr(file.config.content, side) for side in SIDES):
        return []
    mistakes: list[Mistake] = []
    for side in SIDES:
        given = getattr(file.config.content, side)
        rules = tuple(made for rule in given if (made := _rule(file, rule)) is not None)
        reason = _problem(rules)
        if reason is None:
            continue
        # Each by itself only to name the one at fault: long lists take seconds.
        alone = [m for i, rule in enumerate(given) for m in _rule_mistakes(file, ("content", side, i), rule)]
        accepted = f"rules that fit one automaton ({file.masked(reason)})"
        mistakes += alone or [file.mistake(("content", side), accepted)]
    return mistakes


def _rule_mistakes(file: ConfigFile, at: Path, given: GivenRule) -> Iterator[Mistake]:
    from airi.policy.content import ContentAction, ContentRule

    wrong = False
    for k, regex in enumerate(given.regexes):
        alone = ContentRule(name=given.name, action=ContentAction(given.action), regexes=(regex,))
        reason = _problem((alone,))
        if reason is not None:
            wrong = True
            yield file.mistake((*at, "regexes", k), f"a regular expression of those that AIRI has ({reason})")
    rule = _rule(file, given)
    reason = None if wrong or rule is None else _problem((rule,))
    if reason is not None:
        yield file.mistake(at, f"a rule that fits an automaton ({file.masked(reason)})")


def _problem(rules: tuple[ContentRule, ...]) -> str | None:
    if not rules:
        return None
    try:
        _automaton(rules)
    except ConfigError as error:
        return str(error)
    return None


@lru_cache(maxsize=16)
def _automaton(rules: tuple[ContentRule, ...]) -> ContentRules:
    """Made once for what is checked, then served, then reloaded unchanged."""
    from airi.policy.content import ContentRules

    return ContentRules(rules)


def _rule(file: ConfigFile, given: GivenRule) -> ContentRule | None:
    """What a rule looks for; None where it asks a model alone."""
    from airi.policy.content import ContentAction, ContentRule

    words = file.words(given)
    if not (given.detectors or words or given.regexes):
        return None
    return ContentRule(
        name=given.name,
        action=ContentAction(given.action),
        detectors=given.detectors,
        words=words,
        regexes=given.regexes,
        ignore_case=given.ignore_case,
        replacement=given.replacement,
    )


class ContentPart:
    """The part of a reload that texts are scanned by. Streams that run go on with the rules that they began with."""

    name = "content rules"

    def __init__(self, file: ConfigFile) -> None:
        """Raises ConfigFileError for rules that make no automaton."""
        self.table = ContentTable(file)
        """What holds for texts that begin now."""

    async def prepare(self, new: ConfigFile) -> Prepared:
        """The rules that can take the place of those that hold."""
        table = await asyncio.to_thread(ContentTable, new)

        def commit() -> None:
            self.table = table

        return Prepared(commit=commit)
