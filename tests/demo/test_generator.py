"""The generator is reproducible, and what evaluation uses was never seen in training."""

from __future__ import annotations

import hashlib
import json
import random
import re
from itertools import islice

import pytest

from tools.demo_model import intents, policies
from tools.demo_model.generate import Dialogue, Generator, Skill
from tools.demo_model.policy_kind import Kind
from tools.demo_model.smalltalk import FLOWS, SAYINGS, SLOT_REPLIES, TALK
from tools.demo_model.templates import read_templates
from tools.demo_model.vocabulary import Split, Vocabulary, expand, split_of

FIRST_DIALOGUES_DIGEST = "80a52b37837f8ba6"


def dialogues(split: Split, count: int, seed: int = 5) -> list[Dialogue]:
    return list(islice(Generator(seed, split).dialogues(), count))


def test_the_first_dialogues_are_the_same_on_every_machine() -> None:
    lines = [json.dumps(d.messages()) for split in Split for d in dialogues(split, 200, seed=1)]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == FIRST_DIALOGUES_DIGEST


def test_another_seed_gives_other_dialogues() -> None:
    assert dialogues(Split.TRAIN, 5, seed=1) != dialogues(Split.TRAIN, 5, seed=2)


@pytest.mark.parametrize("name", ["intents.txt", "smalltalk.txt"])
def test_no_message_template_serves_both_splits(name: str) -> None:
    by_split = {s: {t for part in read_templates(name).values() for t in part[s]} for s in Split}
    assert by_split[Split.TRAIN]
    assert by_split[Split.HELD_OUT]
    assert not by_split[Split.TRAIN] & by_split[Split.HELD_OUT]


def all_expansions(template: str, limit: int = 400) -> set[str]:
    rng = random.Random(template)
    return {expand(template, rng).lower().rstrip(".?!") for _ in range(limit)}


@pytest.mark.parametrize("intent", intents.INTENTS)
def test_no_wording_of_a_held_out_message_can_be_drawn_in_training(intent: str) -> None:
    templates = read_templates("intents.txt")[intent]
    seen = set().union(*(all_expansions(t) for t in templates[Split.TRAIN]))
    held = set().union(*(all_expansions(t) for t in templates[Split.HELD_OUT]))
    assert not seen & held


@pytest.mark.parametrize("kind", policies.KINDS, ids=lambda k: k.asks[Split.TRAIN][0])
def test_no_wording_of_a_held_out_policy_or_question_can_be_drawn_in_training(kind: Kind) -> None:
    for frames in (kind.states, kind.asks):
        seen = set().union(*(all_expansions(t) for t in frames[Split.TRAIN]))
        held = set().union(*(all_expansions(t) for t in frames[Split.HELD_OUT]))
        assert held
        assert not seen & held


def test_names_and_figures_of_the_splits_are_disjoint() -> None:
    drawn = {}
    for split in Split:
        v = Vocabulary(random.Random(3), split)
        makers = (
            v.word,
            v.place,
            v.product_word,
            v.percent,
            lambda v=v: v.amount(1, 9999),
            lambda v=v: v.clock(6, 22),
        )
        drawn[split] = {make() for make in makers for _ in range(500)}
    assert not drawn[Split.TRAIN] & drawn[Split.HELD_OUT]


def test_every_figure_of_a_policy_answer_belongs_to_its_split() -> None:
    for split in Split:
        replies = [r for d in dialogues(split, 300) for _, r in d.turns if r.skill is Skill.EXTRACT]
        numbers = [n for r in replies for n in re.findall(r"\d[\d,.:]*", r.expected)]
        assert len(numbers) > 300
        assert {split_of(n) for n in numbers} == {split}


def test_the_figure_of_every_policy_answer_stands_in_the_conversation_before_it() -> None:
    for dialogue in dialogues(Split.TRAIN, 400):
        before = dialogue.system or ""
        for said, reply in dialogue.turns:
            before += said
            if reply.skill is Skill.EXTRACT:
                assert reply.expected in before
                assert reply.expected in reply.text
                assert reply.text[-len(reply.expected) - 8 :] in before


def test_no_dialogue_has_an_unfilled_slot_or_choice() -> None:
    for split in Split:
        for dialogue in dialogues(split, 2000):
            for message in dialogue.messages():
                assert not re.search(r"[{}\[\]|]", message["content"])


def test_an_ambiguous_message_carries_the_share_of_its_label_as_confidence() -> None:
    rng = random.Random(8)
    v = Vocabulary(rng, Split.TRAIN)
    drawn = [intents.ambiguous_message(v, rng, Split.TRAIN) for _ in range(4000)]
    for share in {m.confidence for m in drawn}:
        assert 0 < share < intents.CLEAR_CONFIDENCE
    gone = [m for m in drawn if re.fullmatch(r"my .* is gone\.?", m.text.lower())]
    lost = sum(m.intent == "card_lost" for m in gone) / len(gone)
    assert abs(lost - 0.6) < 4 * (0.24 / len(gone)) ** 0.5  # four standard errors of a share of 0.6


def test_a_question_the_text_does_not_answer_clashes_with_no_fact() -> None:
    rng = random.Random(4)
    v = Vocabulary(rng, Split.TRAIN)
    for _ in range(200):
        facts = policies.make_facts(v, rng, Split.TRAIN, 4)
        assert not any(a.clashes(b) for i, a in enumerate(facts) for b in facts[:i])
        assert policies.ask_missing(facts, v, rng, Split.TRAIN).figure is None


def test_every_intent_has_a_flow_and_every_subject_has_sayings() -> None:
    assert set(FLOWS) == set(intents.INTENTS)
    assert set(TALK) == set(SAYINGS)
    assert {flow.slot for flow in FLOWS.values()} - {""} == set(SLOT_REPLIES)
