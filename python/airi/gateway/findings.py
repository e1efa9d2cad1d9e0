"""What content rules found in a text, as its sender or its reader may know it. Names follow Azure OpenAI's."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from airi.policy.content import ContentAction, ContentEvent

__all__ = ["Findings", "PromptResults", "Results", "RuleResult"]


class RuleResult(msgspec.Struct, kw_only=True):
    """What a content rule found in a text; `filtered`: the text was changed or ended for it."""

    filtered: bool
    detected: bool = True
    matches: Annotated[dict[str, int], Meta(description="How many, by what of the rule they matched.")]


Results = dict[str, RuleResult]
"""By the rule's name."""


class PromptResults(msgspec.Struct, kw_only=True):
    """What content rules found in a prompt."""

    prompt_index: int
    content_filter_results: Results


class Findings:
    """Counts the matches in one text."""

    def __init__(self) -> None:
        self._results: Results = {}

    def add(self, event: ContentEvent) -> None:
        """Count a match, unless the audit alone may know of it."""
        if event.action is ContentAction.AUDIT:
            return
        result = self._results.get(event.rule)
        if result is None:
            result = self._results[event.rule] = RuleResult(filtered=event.action.holds, matches={})
        result.matches[event.pattern] = result.matches.get(event.pattern, 0) + 1

    @property
    def told(self) -> Results | None:
        """What there is to tell."""
        return self._results or None
