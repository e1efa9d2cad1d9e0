"""Writes dialogues between customers of invented banks and the demonstration assistant.

    python -m tools.demo_model.generate --count 20 --split train --seed 1

prints them as JSON lines; the same arguments always print the same lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from . import framing, intents, policies
from .smalltalk import FLOWS, NO_TEXT_REPLY, SAYINGS, SLOT_REPLIES, TALK
from .templates import odd_word, some_words
from .vocabulary import Split, Vocabulary, capitalised, expand


class Skill(enum.Enum):
    """What a reply exercises; the evaluation reports each one apart."""

    INTENT = "intent"
    EXTRACT = "extract"
    MISSING = "missing"
    TALK = "talk"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the assistant should say, and what the evaluation needs to judge it.

    `expected` is the intent, or the figure; `confidence` and `clear` are set for intents.
    """

    skill: Skill
    text: str
    expected: str = ""
    confidence: float | None = None
    clear: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """A system message (or none) and turns of a user text with the reply to it."""

    system: str | None
    turns: tuple[tuple[str, Reply], ...]

    def messages(self) -> list[dict[str, str]]:
        """The dialogue as chat messages, with all replies."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for said, reply in self.turns:
            found += [{"role": "user", "content": said}, {"role": "assistant", "content": reply.text}]
        return found


_GREETED = ("who", "can", "out_of_scope")  # subjects that people often open with a greeting
_FACT_COUNTS = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 9, 14)


class Generator:
    """An endless, reproducible source of dialogues of one split.

    `read_back` is the share of copying exercises among the dialogues.

    Thread safety: none. Invariant: the n-th dialogue depends on the arguments and n alone.
    """

    def __init__(self, seed: int, split: Split, *, read_back: float = 0.0) -> None:
        self._read_back = read_back
        self._rng = random.Random(f"{seed}/{split.value}")
        self._vocabulary = Vocabulary(self._rng, split)
        self._split = split

    def dialogues(self) -> Iterator[Dialogue]:
        """Dialogues of all skills in their training proportions."""
        makers: tuple[Callable[[], Dialogue], ...] = (self.policy, self.intent, self.chat, self.mixed)
        while True:
            if self._read_back and self._rng.random() < self._read_back:
                yield self.read_back()
                continue
            yield self._rng.choices(makers, (50, 28, 15, 7))[0]()

    def intent(self) -> Dialogue:
        """Messages to classify, asked for by the system message or by the user."""
        rng = self._rng
        if rng.random() < 0.4:
            system = expand(rng.choice(framing.INTENT_SYSTEMS[self._split]), rng).replace(
                "{bank}", self._vocabulary.bank()
            )
            turns = [(m.text, _intent_reply(m)) for m in (self._message() for _ in range(rng.randint(2, 6)))]
            return Dialogue(system=system, turns=tuple(turns))
        return Dialogue(
            system=self._any_system(0.2), turns=tuple(self._intent_turn() for _ in range(rng.randint(1, 4)))
        )

    def policy(self) -> Dialogue:
        """Paragraphs, in the system message or in the first question, and questions about them."""
        rng, v = self._rng, self._vocabulary
        bank = v.bank()
        facts = policies.make_facts(v, rng, self._split, rng.choice(_FACT_COUNTS))
        text = policies.make_text(facts, v, rng, bank)
        questions = [self._question(facts) for _ in range(rng.randint(2, 6))]
        turns = [(q.text, _policy_reply(q)) for q in questions]
        if rng.random() < 0.4:
            system = self._policy_system().replace("{bank}", bank)
            return Dialogue(system=system.replace("{text}", text), turns=tuple(turns))
        turns[0] = (self._with_text(turns[0][0], text), turns[0][1])
        return Dialogue(system=self._any_system(0.2), turns=tuple(turns))

    def chat(self) -> Dialogue:
        """Greetings, questions about the assistant, customer wishes with a question back, refusals."""
        rng = self._rng
        bank = self._vocabulary.bank() if rng.random() < 0.35 else None
        system = None
        if bank is not None:
            system = expand(rng.choice(framing.CHAT_SYSTEMS[self._split]), rng).replace("{bank}", bank)
        elif rng.random() < 0.2:
            system = rng.choice(framing.PLAIN_SYSTEMS)
        turns: list[tuple[str, Reply]] = []
        for _ in range(rng.randint(1, 5)):
            turns += self._chat_turns(bank)
        return Dialogue(system=system, turns=tuple(turns))

    def mixed(self) -> Dialogue:
        """All skills one after the other in one conversation."""
        rng, v = self._rng, self._vocabulary
        turns: list[tuple[str, Reply]] = []
        for _ in range(rng.choice((2, 2, 3, 3, 5, 7))):
            form = rng.random()
            if form < 0.35:
                turns += self._chat_turns(None)
            elif form < 0.6:
                turns.append(self._intent_turn())
            else:
                facts = policies.make_facts(v, rng, self._split, rng.randint(1, 4))
                text = policies.make_text(facts, v, rng, v.bank())
                first, *rest = (self._question(facts) for _ in range(rng.randint(1, 3)))
                turns.append((self._with_text(first.text, text), _policy_reply(first)))
                turns += [(q.text, _policy_reply(q)) for q in rest]
        return Dialogue(system=None, turns=tuple(turns))

    def read_back(self) -> Dialogue:
        """Lists of names and figures to repeat word for word: where copying is learnt fastest."""
        rng, v = self._rng, self._vocabulary
        draws = (
            v.card,
            v.account,
            v.person,
            v.place,
            v.word,
            v.percent,
            v.bank,
            lambda: v.amount(1.0, 9000.0),
            lambda: v.clock(6, 22),
            lambda: v.money(1.0, 9000.0),
        )
        turns = []
        for _ in range(rng.randint(1, 4)):
            chosen = [
                odd_word(rng) if rng.random() < 0.5 else rng.choice(draws)() for _ in range(rng.randint(2, 7))
            ]
            items = rng.choice((", ", " and ", " ", "; ", " ")).join(chosen)
            said = expand(rng.choice(framing.READ_BACK_ASKS), rng).replace("{items}", items)
            turns.append((said, _talk(items)))
        return Dialogue(system=None, turns=tuple(turns))

    def _any_system(self, share: float) -> str | None:
        return self._rng.choice(framing.PLAIN_SYSTEMS) if self._rng.random() < share else None

    def _message(self) -> intents.Message:
        form = self._rng.random()
        if form < 0.2:
            return intents.ambiguous_message(self._vocabulary, self._rng, self._split)
        if form < 0.26:
            said = self._says("out_of_scope")
            return intents.Message(
                text=said, intent="out_of_scope", confidence=intents.CLEAR_CONFIDENCE, clear=True, slots={}
            )
        intent = self._rng.choice(intents.INTENTS)
        message = intents.clear_message(intent, self._vocabulary, self._rng, self._split)
        if self._split is Split.TRAIN and self._rng.random() < 0.5:
            message = dataclasses.replace(message, text=intents.loosened(message.text, self._rng))
        return message

    def _intent_turn(self) -> tuple[str, Reply]:
        message = self._message()
        said = self._intent_ask().replace("{message}", message.text)
        return said, _intent_reply(message)

    def _question(self, facts: list[policies.Fact]) -> policies.Question:
        if self._rng.random() < 0.2:
            return policies.ask_missing(facts, self._vocabulary, self._rng, self._split)
        return policies.ask(self._rng.choice(facts), self._rng, self._split)

    def _is_loose(self) -> bool:
        return self._split is Split.TRAIN and self._rng.random() < policies.LOOSE_SHARE

    def _loose_intro(self) -> str:
        """Words without meaning before a text, or nothing."""
        words = some_words(self._rng, 0, 6)
        return capitalised(words) + self._rng.choice((": ", ". ", ":\n", "\n", " ")) if words else ""

    def _policy_system(self) -> str:
        if self._is_loose():
            return self._loose_intro() + "{text}"
        return expand(self._rng.choice(framing.POLICY_SYSTEMS[self._split]), self._rng)

    def _intent_ask(self) -> str:
        rng = self._rng
        if not self._is_loose():
            return expand(rng.choice(framing.INTENT_ASKS[self._split]), rng)
        cue = expand(rng.choice(framing.INTENT_CUES), rng)
        around = f"{some_words(rng, 0, 3)} {cue} {some_words(rng, 0, 2)}".strip()
        message = rng.choice(("{message}", '"{message}"'))
        if rng.random() < 0.5:
            return around + rng.choice((": ", " ", "\n", "? ")) + message
        return message + rng.choice((" ", "\n", "\n\n")) + capitalised(around) + rng.choice("?.")

    def _with_text(self, question: str, text: str) -> str:
        rng = self._rng
        if self._is_loose():
            parts = ["{text}", "{question}"]
            rng.shuffle(parts)
            frame = (
                self._loose_intro()
                + parts[0]
                + rng.choice((" ", "\n", "\n\n"))
                + self._loose_intro()
                + parts[1]
            )
        else:
            frame = expand(rng.choice(framing.POLICY_ASKS[self._split]), rng)
        return frame.replace("{text}", text).replace("{question}", question)

    def _says(self, topic: str) -> str:
        template = self._rng.choice(SAYINGS[topic][self._split])
        if topic in _GREETED and self._rng.random() < 0.25:
            template = self._rng.choice(framing.GREETINGS[self._split]) + template
        return intents.roughen(
            intents.fill(template, intents.slot_values(self._vocabulary), self._rng)[0], self._rng
        )

    def _chat_turns(self, bank: str | None) -> list[tuple[str, Reply]]:
        form = self._rng.random()
        if form < 0.45:
            return self._flow_turns()
        if form < 0.53:
            fact = policies.make_fact(self._vocabulary, self._rng, self._split)
            return [(policies.ask(fact, self._rng, self._split).text, _talk(NO_TEXT_REPLY))]
        name = self._rng.choices(sorted(TALK), [4 if n == "out_of_scope" else 2 for n in sorted(TALK)])[0]
        topic = TALK[name]
        reply = (
            topic.reply_with_bank.replace("{bank}", bank) if bank and topic.reply_with_bank else topic.reply
        )
        return [(self._says(name), _talk(reply))]

    def _flow_turns(self) -> list[tuple[str, Reply]]:
        rng = self._rng
        intent = rng.choice(sorted(FLOWS))
        flow = FLOWS[intent]
        message = intents.clear_message(intent, self._vocabulary, rng, self._split)
        if not flow.slot:
            return [(message.text, _talk(flow.known))]
        if flow.slot in message.slots:
            return [(message.text, _talk(flow.known.replace("{slot}", _as_written(message, flow.slot))))]
        turns = [(message.text, _talk(flow.ask))]
        if rng.random() < 0.8:
            values = intents.slot_values(self._vocabulary)
            template = rng.choice(SLOT_REPLIES[flow.slot][self._split])
            turns.append(
                (
                    intents.fill(template, values, rng)[0],
                    _talk(flow.known.replace("{slot}", values[flow.slot])),
                )
            )
        return turns


def _as_written(message: intents.Message, slot: str) -> str:
    """The slot's value in the spelling of the message, which may be all in lower case."""
    value = message.slots[slot]
    return value if value in message.text else value.lower()


def _intent_reply(message: intents.Message) -> Reply:
    return Reply(
        skill=Skill.INTENT,
        text=intents.answer(message),
        expected=message.intent,
        confidence=message.confidence,
        clear=message.clear,
    )


def _policy_reply(question: policies.Question) -> Reply:
    if question.figure is None:
        return Reply(skill=Skill.MISSING, text=question.reply)
    return Reply(skill=Skill.EXTRACT, text=question.reply, expected=question.figure)


def _talk(text: str) -> Reply:
    return Reply(skill=Skill.TALK, text=text, expected=text)


def _as_json(dialogue: Dialogue) -> dict[str, Any]:
    return {"messages": dialogue.messages(), "skills": [reply.skill.value for _, reply in dialogue.turns]}


def main() -> None:
    """Prints dialogues as JSON lines."""
    parser = argparse.ArgumentParser(description="Print generated dialogues as JSON lines.")
    parser.add_argument("--count", type=int, default=10, help="number of dialogues (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the generator (default 1)")
    parser.add_argument(
        "--split", choices=[s.value for s in Split], default="train", help="train or held_out"
    )
    options = parser.parse_args()
    source = Generator(options.seed, Split(options.split)).dialogues()
    for _ in range(options.count):
        print(json.dumps(_as_json(next(source)), ensure_ascii=False))


if __name__ == "__main__":
    main()
