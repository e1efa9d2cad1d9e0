"""Content rules as one call meets them: those that held when it began, and what they have found."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from airi.errors import AuditUnavailableError
from airi.gateway.choice import Choice, Piece
from airi.gateway.errors import content_refused
from airi.gateway.filtered import FilteredChoice
from airi.gateway.findings import Findings, PromptResults
from airi.policy.content import ContentAction, ContentEvent, ContentRules

if TYPE_CHECKING:
    from airi.config.content import Side
    from airi.config.rules import ContentRule
    from airi.gateway.http import CallRecord
    from airi.gateway.json_answers import JsonAnswer
    from airi.gateway.judging import Judge
    from airi.gateway.metrics import ChoiceTimer
    from airi.gateway.models import ServedModel
    from airi.policy.audit import AuditLog
    from airi.sampling_params import SamplingParams
    from airi.text import TextStream
    from airi.transport import GenerateRequest

__all__ = ["MOST_NOTED", "SIDES", "CallContent", "Rules"]

SIDES: tuple[Side, Side] = ("input", "output")
MOST_NOTED = 100
"""Matches of one text that have each a line of the audit log; of the others one line has the number."""


class Rules(NamedTuple):
    """What holds for the texts of one side."""

    patterns: ContentRules | None
    judges: tuple[ContentRule, ...] = ()
    """Rules whose model is asked about a whole text."""

    @property
    def exist(self) -> bool:
        """Whether anything holds."""
        return self.patterns is not None or bool(self.judges)


class CallContent:
    """The content rules of one call. A reload changes nothing of them.

    *Thread safety*: none; prompts may be screened in another thread while the call waits for it.
    """

    def __init__(
        self,
        record: CallRecord,
        model: ServedModel,
        input: Rules,
        output: Rules,
        judge: Judge,
        audit: AuditLog | None,
        request_bytes: int,
    ) -> None:
        """`request_bytes`: of the body; all its texts together have no more."""
        self.model = model
        self.input, self.output = input, output
        self.request_bytes = request_bytes
        self.json: JsonAnswer | None = None
        """Where JSON stands in the answers. Set before there are choices."""
        self.prompts: dict[int, Findings] = {}
        """What was found in prompts, by their index."""
        self.place_of: Callable[[str], str] = str
        """Where in the request that came a field of the prompt stands; the audit log tells that."""
        self._record, self._judge, self._audit = record, judge, audit
        self._holds = any(ContentAction(rule.action).holds for rule in output.judges)
        patterns = () if output.patterns is None else output.patterns.rules
        self._hides = self._holds or any(rule.action.holds for rule in patterns)
        self._kept: dict[Choice, list[Piece]] = {}
        self.hits: Counter[tuple[str, str, str]] = Counter()
        """Matches by side, rule and action."""
        self._num_found: Counter[tuple[Side, str]] = Counter()
        self._unjudged: list[tuple[int, str, str]] = []  # index, text, field

    @property
    def prompt_results(self) -> list[PromptResults]:
        """What was found in prompts that the client is told."""
        told = ((index, found.told) for index, found in sorted(self.prompts.items()))
        return [
            PromptResults(prompt_index=index, content_filter_results=results)
            for index, results in told
            if results is not None
        ]

    def allowed(self, params: SamplingParams) -> SamplingParams:
        """What of the parameters of a choice may be asked for.

        Where a rule blocks or replaces anything, logprobs are of the tokens that the text has: those that the model
        might have taken instead no rule sees, and they spell whatever it would have said.
        """
        return params.without_alternatives() if self._hides else params

    def choice(self, index: int, request: GenerateRequest, text: TextStream, timer: ChoiceTimer) -> Choice:
        """A choice whose text passes the patterns for answers."""
        if self.output.patterns is None:
            return Choice(index, request, text, timer)
        return FilteredChoice(index, request, text, timer, self, self.output.patterns, self.json)

    def found(self, side: Side, where: str, events: Iterable[ContentEvent], findings: Findings) -> None:
        """Counts matches, adds them to what is told and notes them in the audit log, which may raise."""
        record, where = self._record, self.place_of(where)
        for event in events:
            self.model.metrics.content_matched(side, event.rule, event.action)
            self.hits[side, event.rule, event.action] += 1
            self._num_found[side, where] += 1
            if self._audit is not None and self._num_found[side, where] <= MOST_NOTED:
                self._audit.note_match(
                    record.request_id, record.principal, self.model.name, side, where, event
                )
            findings.add(event)

    def close(self) -> None:
        """The call has ended: notes how many matches had no line of their own."""
        record = self._record
        for (side, where), count in self._num_found.items():
            if self._audit is None or count <= MOST_NOTED:
                continue
            try:
                self._audit.note_rest(
                    record.request_id, record.principal, self.model.name, side, where, count - MOST_NOTED
                )
            except AuditUnavailableError:  # its log tells; the call is over, further ones are refused
                return

    def judge_later(self, index: int, text: str, field: str) -> None:
        """Has `judge_prompts` judge a prompt: once the call is within its limits, as a judge uses a device."""
        if self.input.judges:
            self._unjudged.append((index, text, field))

    async def judge_prompts(self) -> None:
        """Has all prompts judged. Raises a 400 where a rule blocks one, and as `Judge.finds`."""
        for index, text, field in self._unjudged:
            for rule in await self._broken("input", field, text, self.prompts[index]):
                if rule.action == "block":
                    raise content_refused(field, rule.name)
        self._unjudged.clear()

    async def judged(self, taken: dict[Choice, list[Piece]]) -> dict[Choice, list[Piece]]:
        """What may go out of what was taken, now that those choices are judged that have ended.

        Where a judge may block or replace a choice, nothing of it goes out before. Raises as `Judge.finds`.
        """
        for choice, pieces in taken.items():
            self._kept.setdefault(choice, []).extend(pieces)
        ended = [choice for choice in taken if choice.finish_reason is not None]
        asked = [self._judge_choice(choice, self._kept[choice]) for choice in ended]
        for result in await asyncio.gather(*asked, return_exceptions=True):
            if result is not None:
                raise result
        return {choice: self._kept.pop(choice) for choice in ended} if self._holds else taken

    async def _judge_choice(self, choice: Choice, pieces: list[Piece]) -> None:
        if choice.findings is None:
            choice.findings = Findings()
        text = "".join([piece.text for piece in pieces])
        for rule in await self._broken("output", f"choices[{choice.index}]", text, choice.findings):
            enforced = self.json is not None and self.json.enforced
            blocks = rule.action == "block" or (rule.action == "redact" and enforced)
            if blocks:
                choice.finish_reason = "content_filter"
                pieces.clear()
            elif rule.action == "redact":
                pieces[:] = [Piece(rule.replacement, [], [])]
            choice.show_instead(pieces)
            if blocks:
                return

    async def _broken(self, side: Side, where: str, text: str, findings: Findings) -> list[ContentRule]:
        """The rules whose judges find a text unsafe, after each was noted."""
        broken = []
        judges = self.input.judges if side == "input" else self.output.judges
        for rule in judges if text else ():
            found = await self._judge.finds(rule, text)
            if found is not None:
                broken.append(rule)
                action, size = ContentAction(rule.action), len(text.encode("utf-8", "surrogatepass"))
                event = ContentEvent(rule=rule.name, pattern=found, action=action, start=0, end=size)
                self.found(side, where, (event,), findings)
        return broken
