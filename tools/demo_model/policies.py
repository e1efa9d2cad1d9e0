"""Policy paragraphs of invented banks, questions about them, and the figures that answer them.

Facts are composed: a topic (a noun phrase with synonyms, often naming a product or a place) stands in a sentence
frame with a figure; a question frame asks for it. Frames come in two disjoint sets, one for each split.
"""

from __future__ import annotations

import dataclasses
import random

from .policy_kind import Kind
from .policy_money import FEE, LIMIT, RATE
from .policy_terms import CLOSING, COUNT, DURATION, OPENING
from .vocabulary import Split, Vocabulary, capitalised, expand

KINDS = (FEE, LIMIT, DURATION, RATE, COUNT, OPENING, CLOSING)
_WEIGHTS = (5, 3, 3, 3, 2, 1, 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A sentence of a policy together with one thing that it answers.

    `names` are the synonyms of the thing; `stated` is the one that stands in the sentence. `product` is the
    product, place or word that narrows the topic ("" when nothing does).
    """

    kind: Kind
    topic: tuple[str, ...]
    product: str
    names: tuple[str, ...]
    stated: str
    sentence: str
    figure: str

    def clashes(self, other: Fact) -> bool:
        """Whether a question about one could be taken for a question about the other."""
        hours = (OPENING, CLOSING)
        same_kind = self.kind is other.kind or (self.kind in hours and other.kind in hours)
        if not same_kind or self.topic != other.topic:
            return False
        return self.product == other.product or "" in (self.product, other.product)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, its reply, and the figure that the reply must copy (None: the text does not say)."""

    text: str
    reply: str
    figure: str | None


_FILLERS = (
    "[Our team is|We are] happy to help.",
    "{bank} was founded in {place}.",
    "[Please|Always] keep your card in a safe place.",
    "[Never|Do not] tell anyone your PIN.",
    "[These rules|The rules below] apply to all customers.",
    "You can [find|read] more in the app.",
    "Changes are announced in the app.",
    "Your savings are protected by law.",
    "{bank} [may|can] change these terms.",
    "Ask in any branch if something is unclear.",
)
_HEADINGS = (
    "Fees and limits",
    "Prices",
    "Terms of {bank}",
    "Cards and accounts",
    "Service",
    "Conditions",
    "{bank}",
)

MISSING_REPLY = "Sorry, the text does not state {what}."


def _fill(text: str, np: str, figure: str, other: str) -> str:
    return (
        text.replace("{np}", np)
        .replace("{Np}", capitalised(np))
        .replace("{fig2}", other)
        .replace("{fig}", figure)
    )


def _names(topic: tuple[str, ...], v: Vocabulary) -> tuple[str, tuple[str, ...]]:
    """A drawn product, place or word ("" when the topic has no slot) and the synonyms filled with it."""
    slots = {"{account}": v.account, "{card}": v.card, "{place}": v.place, "{word}": v.product_word}
    for slot, draw in slots.items():
        if any(slot in name for name in topic):
            value = draw()
            return value, tuple(name.replace(slot, value) for name in topic)
    return "", topic


def _qualified(names: tuple[str, ...], v: Vocabulary, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """Narrows a plain topic to one product, as real price lists do."""
    product = rng.choice((v.card, v.account))()
    link = rng.choice(("with", "with", "for"))
    return product, tuple(f"{name} {link} the {product}" for name in names)


def make_fact(v: Vocabulary, rng: random.Random, split: Split, like: Fact | None = None) -> Fact:
    """A new fact; with `like`, one of the same kind, so that the two are easily confused."""
    kind = like.kind if like else rng.choices(KINDS, _WEIGHTS)[0]
    topic = like.topic if like and like.product and rng.random() < 0.5 else rng.choice(kind.topics)
    product, names = _names(topic, v)
    wants_product = rng.random() < 0.3 or (like is not None and topic == like.topic)
    if not product and wants_product and kind not in (OPENING, CLOSING):
        product, names = _qualified(names, v, rng)
    stated = rng.choice(names)
    figure = kind.figure(v, rng)
    other = v.clock(12, 22) if kind is OPENING else v.clock(6, 11)
    sentence = capitalised(_fill(expand(rng.choice(kind.states[split]), rng), stated, figure, other))
    return Fact(
        kind=kind, topic=topic, product=product, names=names, stated=stated, sentence=sentence, figure=figure
    )


def make_facts(v: Vocabulary, rng: random.Random, split: Split, count: int) -> list[Fact]:
    """Facts that do not clash, many of them of the same kind as an earlier one."""
    facts: list[Fact] = []
    while len(facts) < count:
        like = rng.choice(facts) if facts and rng.random() < 0.5 else None
        fact = make_fact(v, rng, split, like)
        if not any(fact.clashes(f) for f in facts):
            facts.append(fact)
    return facts


def make_text(facts: list[Fact], v: Vocabulary, rng: random.Random, bank: str) -> str:
    """The facts as policy paragraphs, in random order, with sentences that answer nothing in between."""
    sentences = [f.sentence for f in facts]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        filler = expand(rng.choice(_FILLERS), rng).replace("{bank}", bank).replace("{place}", v.place())
        sentences.append(filler)
    rng.shuffle(sentences)
    style = rng.random()
    if style < 0.15:
        return "\n".join(f"- {s}" for s in sentences)
    if style < 0.25:
        return "\n".join(sentences)
    cut = rng.randint(1, len(sentences))
    paragraphs = [" ".join(part) for part in (sentences[:cut], sentences[cut:]) if part]
    text = rng.choice(("\n", "\n\n")).join(paragraphs)
    if rng.random() < 0.3:
        text = rng.choice(_HEADINGS).replace("{bank}", bank) + "\n" + text
    return text


def ask(fact: Fact, rng: random.Random, split: Split) -> Question:
    """A question that the fact answers."""
    name = fact.stated if rng.random() < 0.6 else rng.choice(fact.names)
    text = _fill(expand(rng.choice(fact.kind.asks[split]), rng), name, "", "")
    reply = _fill(fact.kind.answer, name, fact.figure, "")
    return Question(text=text, reply=reply, figure=fact.figure)


def ask_missing(facts: list[Fact], v: Vocabulary, rng: random.Random, split: Split) -> Question:
    """A question that none of the facts answers, though one of them may look close."""
    while True:
        fact = make_fact(v, rng, split, rng.choice(facts) if rng.random() < 0.7 else None)
        name = rng.choice(fact.names)
        if not any(fact.clashes(f) for f in facts):
            text = _fill(expand(rng.choice(fact.kind.asks[split]), rng), name, "", "")
            reply = MISSING_REPLY.format(what=fact.kind.missing.replace("{np}", name))
            return Question(text=text, reply=reply, figure=None)
