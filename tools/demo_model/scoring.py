"""Held-out questions for the demonstration model and how its answers are judged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from itertools import islice, pairwise

from .generate import Generator, Reply, Skill
from .policies import NOT_STATED
from .vocabulary import Split

_INTENT = re.compile(r"intent: (\w+) \(confidence (0\.\d\d|1\.00)\)")
_NUMBER = re.compile(r"\d[\d.,:]*\d|\d")
_MAX_CHARACTERS = 2400  # of a conversation, so that it and the reply fit the context of 1,024 tokens
_BINS = (0.0, 0.45, 0.55, 0.65, 0.9, 1.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A conversation up to a user message, and the reply that should follow."""

    messages: list[dict[str, str]]
    reply: Reply


def held_out_examples(seed: int, per_skill: int) -> list[Example]:
    """The first `per_skill` examples of each skill from the held-out split, earlier turns answered correctly."""
    found: dict[Skill, list[Example]] = {skill: [] for skill in Skill}
    for dialogue in Generator(seed, Split.HELD_OUT).dialogues():
        history = dialogue.messages()
        first = 1 if dialogue.system is not None else 0
        for turn, (_, reply) in enumerate(dialogue.turns):
            messages = history[: first + 2 * turn + 1]
            short = sum(len(m["content"]) for m in messages) <= _MAX_CHARACTERS
            if short and len(found[reply.skill]) < per_skill:
                found[reply.skill].append(Example(messages=messages, reply=reply))
        if all(len(examples) == per_skill for examples in found.values()):
            return [example for skill in Skill for example in islice(found[skill], per_skill)]
    raise AssertionError("the generator never ends")


def parse_intent(text: str) -> tuple[str, float] | None:
    """The intent and the confidence that an answer states; None when it is not of that form."""
    match = _INTENT.fullmatch(text.strip())
    return (match[1], float(match[2])) if match else None


def gives_figure(reply: Reply, answer: str) -> bool:
    """Whether an answer gives the figure, unit included, and no number but those of the policy's own sentence."""
    whole = re.search(rf"(?<![\w.,]){re.escape(reply.expected)}(?!\w|[.,:]?\d)", answer) is not None
    return whole and _NUMBER.findall(answer) == _NUMBER.findall(reply.text)


def is_right(reply: Reply, answer: str) -> bool:
    """Whether an answer says what the reply should."""
    match reply.skill:
        case Skill.INTENT:
            parsed = parse_intent(answer)
            return parsed is not None and parsed[0] == reply.expected
        case Skill.EXTRACT:
            return gives_figure(reply, answer)
        case Skill.MISSING:
            return answer.strip().endswith(NOT_STATED)
        case Skill.TALK:
            return answer.strip() == reply.text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Answers whose stated confidence falls into one range."""

    count: int
    stated: float
    right: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The figures of one evaluation; shares are in [0, 1].

    `calibration_error` is the mean distance between stated confidence and share of right answers over the bins,
    weighted by their counts; it covers clear and ambiguous messages.
    """

    samples: int
    intent_clear: float
    intent_all: float
    calibration_error: float
    bins: tuple[Bin, ...]
    extract_figure: float
    extract_whole: float
    missing: float
    talk: float


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")


def _bins(judged: list[tuple[float, bool]]) -> tuple[Bin, ...]:
    found = []
    for low, high in pairwise(_BINS):
        inside = [(c, r) for c, r in judged if low < c <= high]
        if inside:
            stated = sum(c for c, _ in inside) / len(inside)
            found.append(Bin(count=len(inside), stated=stated, right=_share([r for _, r in inside])))
    return tuple(found)


def score(examples: Sequence[Example], answers: Sequence[str]) -> Scores:
    """Judges one answer per example."""
    pairs = [(e.reply, a) for e, a in zip(examples, answers, strict=True)]
    hits = {s: [is_right(r, a) for r, a in pairs if r.skill is s] for s in Skill}
    judged = []
    for reply, text in pairs:
        parsed = parse_intent(text) if reply.skill is Skill.INTENT else None
        if parsed is not None:
            judged.append((parsed[1], parsed[0] == reply.expected))
    bins = _bins(judged)
    return Scores(
        samples=len(pairs),
        intent_clear=_share([is_right(r, a) for r, a in pairs if r.skill is Skill.INTENT and r.clear]),
        intent_all=_share(hits[Skill.INTENT]),
        calibration_error=sum(b.count * abs(b.stated - b.right) for b in bins) / max(1, len(judged)),
        bins=bins,
        extract_figure=_share(hits[Skill.EXTRACT]),
        extract_whole=_share([a.strip() == r.text for r, a in pairs if r.skill is Skill.EXTRACT]),
        missing=_share(hits[Skill.MISSING]),
        talk=_share(hits[Skill.TALK]),
    )
