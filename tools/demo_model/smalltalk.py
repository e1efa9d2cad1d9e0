"""Plain conversation: greetings, questions about the assistant, requests to turn down, replies to each intent."""

from __future__ import annotations

import dataclasses

from .templates import read_templates
from .vocabulary import Split

_T, _H = Split.TRAIN, Split.HELD_OUT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """How the assistant replies to one subject, without and with a bank to name."""

    reply: str
    reply_with_bank: str = ""


SAYINGS = read_templates("smalltalk.txt")

TALK: dict[str, Topic] = {
    "greeting": Topic(
        reply="Hello! How can I help you?",
        reply_with_bank="Hello and welcome to {bank}! How can I help you?",
    ),
    "who": Topic(
        reply="I am the AIRI demonstration model, a very small assistant for an invented bank.",
        reply_with_bank="I am the AIRI demonstration model, a very small assistant for {bank}, an invented bank.",
    ),
    "can": Topic(
        reply=(
            "I can do three things: name the intent of a customer message, answer a question from policy text "
            "that you give me, and talk about your bank card, account or transfers."
        ),
    ),
    "thanks": Topic(
        reply="You are welcome. Is there anything else I can do for you?",
    ),
    "bye": Topic(
        reply="Goodbye and have a nice day!",
        reply_with_bank="Goodbye and thank you for choosing {bank}!",
    ),
    "out_of_scope": Topic(
        reply="I am sorry, I cannot help with that. I can only help with questions about the bank.",
        reply_with_bank="I am sorry, I cannot help with that. I can only help with questions about {bank}.",
    ),
}

NO_TEXT_REPLY = "I do not have the policy text for that. Please send me the paragraph and I will look it up."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """How the assistant takes up an intent: what it asks for, and what it says once it knows.

    `slot` names the missing detail; with no slot the reply `known` comes at once. In `known`, "{slot}" stands for
    the detail, copied from the message.
    """

    slot: str = ""
    ask: str = ""
    known: str


FLOWS: dict[str, Flow] = {
    "card_lost": Flow(
        slot="card",
        ask="I am sorry to hear that. Which card did you lose?",
        known="I am sorry to hear that. I have noted the {slot} as lost.",
    ),
    "card_stolen": Flow(
        slot="card",
        ask="I am sorry to hear that. Which card was stolen?",
        known="I am sorry to hear that. I have noted the {slot} as stolen. Please also tell the police.",
    ),
    "card_blocked": Flow(
        slot="card",
        ask="Let us look at that. Which card is blocked?",
        known="I have noted that the {slot} is blocked. A colleague will check it.",
    ),
    "card_delivery": Flow(
        slot="card",
        ask="I can ask about the delivery. Which card are you waiting for?",
        known="I have asked about the delivery of the {slot}.",
    ),
    "pin_forgotten": Flow(
        slot="card",
        ask="No problem. For which card do you need a new PIN?",
        known="I have ordered a new PIN for the {slot}. It comes by letter.",
    ),
    "cash_machine": Flow(
        slot="place",
        ask="I am sorry about that. Where is the cash machine?",
        known="I am sorry about that. I have reported the cash machine in {slot}.",
    ),
    "unknown_payment": Flow(
        slot="money",
        ask="Let us check that. How much was the payment?",
        known="I have opened a check of the payment of {slot}.",
    ),
    "refund_request": Flow(
        slot="money",
        ask="I can ask for a refund. How much is it?",
        known="I have asked for a refund of {slot}.",
    ),
    "transfer_make": Flow(
        slot="money",
        ask="I can prepare a transfer. How much do you want to send?",
        known="I have prepared a transfer of {slot}. Please confirm it in the app.",
    ),
    "transfer_problem": Flow(
        slot="money",
        ask="Let us look for it. How much was the transfer?",
        known="I have asked about the transfer of {slot}.",
    ),
    "limit_change": Flow(
        slot="money",
        ask="I can note a new limit. How high should it be?",
        known="I have noted a new limit of {slot}.",
    ),
    "account_open": Flow(
        slot="account",
        ask="Gladly. Which account would you like to open?",
        known="Gladly. To open the {slot} you need your passport and a proof of address.",
    ),
    "account_close": Flow(
        slot="account",
        ask="I am sorry that you want to leave. Which account should be closed?",
        known="I have noted that the {slot} should be closed. Please confirm it by letter.",
    ),
    "address_change": Flow(
        slot="place",
        ask="I can note that. What is your new town?",
        known="I have noted your new address in {slot}.",
    ),
    "loan_question": Flow(
        slot="money",
        ask="I can note a loan request. How much do you need?",
        known="I have noted a loan request of {slot}. An adviser will call you.",
    ),
    "savings_question": Flow(known="For savings I can look up rates in a policy text that you send me."),
    "app_login": Flow(
        known="Please tap on the button for a new password in the app and follow the steps there."
    ),
    "statement_request": Flow(known="You find your statements in the app under Documents."),
    "opening_hours": Flow(known=NO_TEXT_REPLY),
    "human_agent": Flow(known="I am only a demonstration and cannot connect you. Please call your bank."),
    "complaint": Flow(known="I am sorry that we let you down. I have noted your complaint."),
}

SLOT_REPLIES: dict[str, dict[Split, tuple[str, ...]]] = {
    "card": {
        _T: (
            "[The|It is the|My|the|it's my|] {card}.",
            "It is my {card}, please.",
            "[the] {card}",
            "I mean the {card}.",
        ),
        _H: ("It was the {card}.", "The card is the {card}."),
    },
    "account": {
        _T: (
            "[The|A|My|It is the|] {account}.",
            "[the] {account}",
            "I mean the {account}.",
            "The {account}, please.",
        ),
        _H: ("That is the {account}.", "I want the {account}."),
    },
    "money": {
        _T: (
            "{money}",
            "[It is|It was|About|Exactly|] {money}.",
            "{money}, please.",
            "I think {money}.",
            "It should be {money}.",
        ),
        _H: ("It is about {money}.", "That would be {money}."),
    },
    "place": {
        _T: ("[In|It is in|At|] {place}.", "{place}", "In {place}, near the station.", "{place}, please."),
        _H: ("That is in {place}.", "The town is {place}."),
    },
}
