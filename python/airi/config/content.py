"""A config's content rules as automata: which hold for whose texts, and what is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
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
        self._automata: dict[tuple[Side, tuple[int, ...]], ContentRules] = {}
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
            scanned = tuple(i for i in holding if self._made[side][i] is not None)
            judges = tuple(self._given[side][i] for i in holding if self._given[side][i].judge is not None)
            self._found[key] = self._automaton(side, scanned), judges
        return self._found[key]

    def _holds(self, rule: GivenRule, tenant: str, model: str) -> bool:
        models = [self._names.get(name, name) for name in rule.models]
        return (not rule.tenants or tenant in rule.tenants) and (not models or model in models)

    def _automaton(self, side: Side, indices: tuple[int, ...]) -> ContentRules | None:
        from airi.policy.content import ContentRules

        if not indices:
            return None
        if (side, indices) not in self._automata:
            rules = [rule for i in indices if (rule := self._made[side][i]) is not None]
            self._automata[side, indices] = ContentRules(rules)
        return self._automata[side, indices]


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
        before = len(mistakes)
        rules = []
        for i, given in enumerate(getattr(file.config.content, side)):
            mistakes += _rule_mistakes(file, ("content", side, i), given)
            rules.append(_rule(file, given))
        reason = _problem([rule for rule in rules if rule is not None])
        if reason is not None and len(mistakes) == before:
            accepted = f"rules that fit one automaton ({file.masked(reason)})"
            mistakes.append(file.mistake(("content", side), accepted))
    return mistakes


def _rule_mistakes(file: ConfigFile, at: Path, given: GivenRule) -> Iterator[Mistake]:
    from airi.policy.content import ContentAction, ContentRule

    wrong = False
    for k, regex in enumerate(given.regexes):
        alone = ContentRule(name=given.name, action=ContentAction(given.action), regexes=(regex,))
        reason = _problem([alone])
        if reason is not None:
            wrong = True
            yield file.mistake((*at, "regexes", k), f"a regular expression of those that AIRI has ({reason})")
    rule = _rule(file, given)
    reason = None if wrong or rule is None else _problem([rule])
    if reason is not None:
        yield file.mistake(at, f"a rule that fits an automaton ({file.masked(reason)})")


def _problem(rules: list[ContentRule]) -> str | None:
    from airi.policy.content import ContentRules

    if not rules:
        return None
    try:
        ContentRules(rules)
    except ConfigError as error:
        return str(error)
    return None


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
