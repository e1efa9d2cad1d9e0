"""Policy paragraphs of invented banks, questions about them, and the figures that answer them.

Facts are composed: a topic (a noun phrase with synonyms, often naming a product or a place) stands in a sentence
frame with a figure; a question frame asks for it. Frames come in two disjoint sets, one for each split.
"""

from __future__ import annotations

import dataclasses
import random
import re

from .policy_kind import Kind
from .policy_money import FEE, LIMIT, RATE
from .policy_terms import CLOSING, COUNT, DURATION, OPENING
from .templates import odd_word, some_words
from .vocabulary import Split, Vocabulary, capitalised, expand

KINDS = (FEE, LIMIT, DURATION, RATE, COUNT, OPENING, CLOSING)
_WEIGHTS = (5, 3, 3, 3, 2, 1, 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A sentence of a policy together with one thing that it answers.

    `names` are the synonyms of the thing; `stated` is the one that stands in the sentence and `rest` what follows
    it. `product` is the product, place or word that narrows the topic ("" when nothing does).
    """

    kind: Kind
    topic: tuple[str, ...]
    product: str
    names: tuple[str, ...]
    stated: str
    sentence: str
    rest: str
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
    """A question, its reply, and the figure that the reply must give (None: the text does not say).

    The reply names what was asked for in the words of the text, then copies word for word what the text says of it.
    """

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
_ASIDES = {
    Split.TRAIN: (
        "[now|today|currently|at present|always|officially|as a rule|in general|by default|in all branches|this year]",
        "[since|from|until|in|as of] [January|February|March|April|May|June|July|August|October|December]",
        "[in|under|with] [plan|tariff|model|version|series|package] {word}",
        "(plan {word})",
        "at {bank}",
        "in {place}",
        "[under|see|by] [rule|{odd}] {number}",
        "({odd} {word})",
        "{odd}",
        "{odd} {odd2}",
        "[in|under|with] {odd}[ {word}| {number}| {odd2}|]",
        "[for|with|like|by|after] {word} [customers|members|users|rules|and more|]",
        "[these days|nowadays|at the moment]",
        "([class|level|group] {word})",
        "[within|outside|near] {place}",
        "under section {number}",
    ),
    Split.HELD_OUT: (
        "[for the time being|lately]",
        "(form {word})",
        "around {place}",
        "according to page {number}",
    ),
}
_HEADINGS = (
    "Fees and limits",
    "Prices",
    "Terms of {bank}",
    "Cards and accounts",
    "Service",
    "Conditions",
    "{bank}",
)

LOOSE_SHARE = 0.35  # of training wordings that are strung together of any words, so that none is relied on
NOT_STATED = "? The text does not say."


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


def _loose_statement(rng: random.Random) -> str:
    """A frame of words that mean nothing: a reply can only copy them."""
    before = rng.choice(
        ("{Np}", "{Np}", "{Np}", "The " + some_words(rng, 1, 2) + " {np}", some_words(rng, 1, 3) + " {np}")
    )
    joint = rng.choice((" ", " ", " ", ", ", ": ", " is "))
    after = some_words(rng, 1, 3) if rng.random() < 0.3 else ""
    return capitalised(f"{before} {some_words(rng, 0, 4)}{joint}{{fig}} {after}".rstrip()) + "."


def _loose_question(kind: Kind, rng: random.Random) -> str:
    """A question in words that mean nothing but for one that tells what it asks for."""
    cue = rng.choice(kind.cues)
    parts = [cue, rng.choice(("", "for ", "with ", "does ", "of ")) + "{np}"]
    rng.shuffle(parts)
    text = f"{some_words(rng, 0, 3)} {parts[0]} {some_words(rng, 0, 2)} {parts[1]} {some_words(rng, 0, 2)}"
    return capitalised(" ".join(text.split())) + rng.choice("???.")


def _statement(kind: Kind, rng: random.Random, split: Split) -> str:
    loose = split is Split.TRAIN and rng.random() < LOOSE_SHARE
    return _loose_statement(rng) if loose else rng.choice(kind.states[split])


def _asking(kind: Kind, rng: random.Random, split: Split) -> str:
    if split is Split.TRAIN and rng.random() < LOOSE_SHARE:
        return _loose_question(kind, rng)
    return expand(rng.choice(kind.asks[split]), rng)


def _widened(template: str, v: Vocabulary, rng: random.Random, split: Split) -> str:
    """The frame, often with words after the topic that the reply has to copy too."""
    if rng.random() < 0.5:
        return template
    words = expand(rng.choice(_ASIDES[split]), rng)
    drawn = {
        "{word}": v.word(),
        "{place}": v.place(),
        "{bank}": v.bank(),
        "{number}": v.number(1, 99),
        "{odd}": odd_word(rng),
        "{odd2}": odd_word(rng),
    }
    for slot, value in drawn.items():
        words = words.replace(slot, value)
    return re.sub(r"(\{[nN]p\})", lambda m: f"{m[1]} {words}", template, count=1)


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
    template = expand(_widened(_statement(kind, rng, split), v, rng, split), rng)
    sentence = capitalised(_fill(template, stated, figure, other))
    rest = _fill(re.split(r"\{[nN]p\}", template)[1], stated, figure, other)
    return Fact(
        kind=kind,
        topic=topic,
        product=product,
        names=names,
        stated=stated,
        sentence=sentence,
        rest=rest,
        figure=figure,
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
    name = fact.stated if rng.random() < 0.75 else rng.choice(fact.names)
    text = _fill(_asking(fact.kind, rng, split), name, "", "")
    reply = _fill(fact.kind.lead, fact.stated, "", "") + fact.rest
    return Question(text=text, reply=reply, figure=fact.figure)


def ask_missing(facts: list[Fact], v: Vocabulary, rng: random.Random, split: Split) -> Question:
    """A question that none of the facts answers, though one of them may look close."""
    while True:
        fact = make_fact(v, rng, split, rng.choice(facts) if rng.random() < 0.7 else None)
        name = rng.choice(fact.names)
        if not any(fact.clashes(f) for f in facts):
            text = _fill(_asking(fact.kind, rng, split), name, "", "")
            reply = _fill(fact.kind.lead, name, "", "") + NOT_STATED
            return Question(text=text, reply=reply, figure=None)
