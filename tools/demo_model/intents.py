"""Messages of bank customers with the intent behind each, clear and ambiguous.

Every intent has templates for training and other ones for evaluation. An ambiguous message carries the share of
each intent that it may mean: the label of a sample is drawn by these shares and its share is the confidence to state,
so a stated 0.60 should be right in six cases of ten.
"""

from __future__ import annotations

import dataclasses
import random
import re

from .templates import read_shares, read_templates
from .vocabulary import Split, Vocabulary, capitalised, expand

CLEAR_CONFIDENCE = 0.97

_TEMPLATES = read_templates("intents.txt")
INTENTS = tuple(sorted(name for name in _TEMPLATES if len(read_shares(name)) == 1))
_AMBIGUOUS = {
    split: [
        (text, read_shares(key))
        for key in _TEMPLATES
        if key not in INTENTS
        for text in _TEMPLATES[key][split]
    ]
    for split in Split
}

_OPENERS = {
    Split.TRAIN: (
        "Hi, ",
        "Hello, ",
        "Good morning, ",
        "Hi there, ",
        "Hello. ",
        "Good evening. ",
        "Excuse me, ",
        "Hey, ",
    ),
    Split.HELD_OUT: ("Good day, ", "Hello there. ", "Dear team, "),
}
_CLOSERS = {
    Split.TRAIN: (
        "Please help.",
        "Thanks.",
        "Thank you.",
        "What can I do?",
        "Can you help me?",
        "What now?",
        "Regards, {person}",
    ),
    Split.HELD_OUT: ("Many thanks.", "Please help me.", "Best regards, {person}"),
}


_STORIES = {
    Split.TRAIN: (
        "I have been a customer for {days} years.",
        "[It is urgent|I am in a hurry|Please be quick].",
        "I am [on holiday|at work|at home|in {place}|abroad] [now|at the moment|this week|].",
        "[I hope you can help|I need your help|I have a problem|I have a question].",
        "[This is my second message|I wrote to you before|I called you {days} days ago].",
        "My name is {person}.",
        "[I am not sure what to do|I do not know what to do|I am worried|I am sorry to bother you].",
        "[It happened yesterday|That was on Monday|It is like that since last week].",
    ),
    Split.HELD_OUT: (
        "I am {person} from {place}.",
        "This is important to me.",
        "Nobody could help me so far.",
    ),
}
_FILLERS = (
    "really",
    "now",
    "also",
    "just",
    "please",
    "again",
    "today",
    "still",
    "already",
    "well",
    "so",
    "maybe",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A customer message, the intent drawn for it, the share of that intent, and whether only one fits."""

    text: str
    intent: str
    confidence: float
    clear: bool
    slots: dict[str, str]


def slot_values(v: Vocabulary) -> dict[str, str]:
    """A value for each slot that templates may use."""
    return {
        "card": v.card(),
        "account": v.account(),
        "money": v.money(5.0, 5000.0),
        "person": v.person(),
        "place": v.place(),
        "shop": v.word(),
        "days": v.number(2, 40),
    }


def fill(template: str, slots: dict[str, str], rng: random.Random) -> tuple[str, dict[str, str]]:
    """The expanded template with its slots filled, and the slots that it used."""
    text = expand(template, rng)
    used = {key: value for key, value in slots.items() if "{" + key + "}" in text}
    for key, value in used.items():
        text = text.replace("{" + key + "}", value)
    return re.sub(r"\ba (?=[AEIOU][a-z])", "an ", text), used


def roughen(text: str, rng: random.Random) -> str:
    """Sometimes writes as people do: no capitals, no full stop."""
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.25:
        text = text.rstrip(".?!")
    return text


def loosened(text: str, rng: random.Random) -> str:
    """The text as hurried people write it: words left out, little words thrown in."""
    words: list[str] = []
    for word in text.split(" "):
        if rng.random() < 0.06:
            words.append(rng.choice(_FILLERS))
        if rng.random() > 0.1:
            words.append(word)
    return " ".join(words) if len(words) > 2 else text


def clear_message(
    intent: str, v: Vocabulary, rng: random.Random, split: Split, *, plain: bool = False
) -> Message:
    """A message that has exactly this intent; `plain` leaves out greetings and closing words."""
    text, used = fill(rng.choice(_TEMPLATES[intent][split]), slot_values(v), rng)
    text = capitalised(text)
    if not plain and rng.random() < 0.15:
        text = text if text[-1] in ".?!" else text + "."
        story = fill(rng.choice(_STORIES[split]), {**slot_values(v), **used}, rng)[0]
        text = f"{story} {text}" if rng.random() < 0.5 else f"{text} {story}"
    if not plain and rng.random() < 0.2:
        opener = rng.choice(_OPENERS[split])
        text = opener + (
            text if opener.endswith(". ") or text.startswith("I ") else text[:1].lower() + text[1:]
        )
    if not plain and rng.random() < 0.2:
        text = text if text[-1] in ".?!" else text + "."
        text += " " + fill(rng.choice(_CLOSERS[split]), slot_values(v), rng)[0]
    return Message(
        text=roughen(text, rng), intent=intent, confidence=CLEAR_CONFIDENCE, clear=True, slots=used
    )


def ambiguous_message(v: Vocabulary, rng: random.Random, split: Split) -> Message:
    """A message that may mean several intents, labelled with one of them by its share."""
    if rng.random() < 0.3:
        first, second = rng.sample(INTENTS, 2)
        text = " ".join(
            capitalised(fill(rng.choice(_TEMPLATES[name][split]), slot_values(v), rng)[0])
            for name in (first, second)
        )
        shares = {first: 0.6, second: 0.4}
    else:
        template, shares = rng.choice(_AMBIGUOUS[split])
        text = capitalised(fill(template, slot_values(v), rng)[0])
    intent = rng.choices(list(shares), list(shares.values()))[0]
    return Message(text=roughen(text, rng), intent=intent, confidence=shares[intent], clear=False, slots={})


def answer(message: Message) -> str:
    """The line that names the intent."""
    return f"intent: {message.intent} (confidence {message.confidence:.2f})"
