"""Policy figures that are not money: durations, numbers of things, opening hours."""

from __future__ import annotations

import random

from .policy_kind import AMOUNTS_TO, Kind, Topics
from .vocabulary import Split, Vocabulary


def _duration(v: Vocabulary, rng: random.Random) -> str:
    unit = rng.choice(
        ("working days", "working days", "days", "hours", "weeks", "minutes", "business days", "months")
    )
    if rng.random() < 0.15:
        return f"{v.number(2, 9)} to {v.number(10, 20)} {unit}"
    return f"{v.number(2, 60)} {unit}"


DURATION = Kind(
    lead="The time for {np}",
    cues=(
        "how long",
        "time",
        "how many days",
        "wait",
        "how fast",
        "when will",
        "days",
        "how quickly",
        "take",
        "finished",
        "ready",
        "duration",
    ),
    states={
        Split.TRAIN: (
            "The time for {np} " + AMOUNTS_TO + " {fig}.",
            "{Np} [takes|can take|may take|needs|usually takes] {fig}.",
            "{Np} [lasts|goes on for|requires|is ready in|happens in] {fig}.",
            "{Np} takes [up to|about] {fig}.",
            "{Np} is [done|completed|finished] within {fig}.",
            "{Np}: {fig}.",
            "[As a rule|In general|For all customers] {np} takes {fig}.",
            "{Np} will be completed in {fig}.",
            "{Np} normally needs {fig}.",
            "The usual time for {np} is {fig}.",
        ),
        Split.HELD_OUT: (
            "{Np} will be dealt with in {fig}.",
            "The average time for {np} lies at {fig}.",
            "{Np} should be over in {fig}.",
        ),
    },
    asks={
        Split.TRAIN: (
            "How long does {np} take?",
            "How [many days|much time|many hours] does {np} take?",
            "When will {np} be [done|completed]?",
            "How long do I [have to wait|wait] for {np}?",
            "What is the time for {np}?",
            "How long do you need for {np}?",
            "How [quickly|fast] is {np} [completed|done]?",
            "I am waiting for {np}. How long [does it|will it] take?",
            "Tell me how long {np} takes.",
            "Within what time is {np} completed?",
            "Can you tell me the time for {np}?",
            "How much time should I plan for {np}?",
        ),
        Split.HELD_OUT: (
            "How much time should I allow for {np}?",
            "How many days do you need for {np}?",
            "Can you tell me how long {np} will take?",
            "How long until {np} is done?",
        ),
    },
    topics=(
        ("the delivery of a card", "card delivery", "sending a card"),
        ("a refund", "refunding a payment", "paying money back"),
        ("the reply to a complaint", "answering a complaint", "a reply to a complaint"),
        ("a transfer within the country", "a domestic transfer", "a local transfer"),
        ("an international transfer", "a transfer abroad", "a transfer to another country"),
        ("the opening of an account", "opening an account", "a new account"),
        ("a loan decision", "deciding on a loan", "the decision on a loan"),
        ("the delivery of the PIN letter", "the PIN letter", "sending the PIN"),
        ("an identity check", "checking my identity", "the identity check"),
        ("the closing of an account", "closing an account"),
        ("a card dispute", "the check of a disputed payment", "checking a disputed payment"),
        ("a change of address", "changing the address", "an address change"),
        ("a cheque deposit", "booking a cheque"),
        ("sending the {card}", "delivery of the {card}"),
        ("opening the {account}", "the opening of the {account}"),
    ),
    figure=_duration,
)

COUNT = Kind(
    lead="The number of {np}",
    cues=("how many", "number", "the number", "how often", "count", "many"),
    states={
        Split.TRAIN: (
            "The [number|maximum number] of {np} " + AMOUNTS_TO + " {fig}.",
            "[At present|For all customers|In general] the number of {np} is {fig}.",
            "{Np}: {fig}.",
            "The number of {np} is fixed at {fig}.",
            "The highest number of {np} is {fig}.",
        ),
        Split.HELD_OUT: (
            "The permitted number of {np} lies at {fig}.",
            "Our number of {np} reads {fig}.",
        ),
    },
    asks={
        Split.TRAIN: (
            "How many {np} [are there|do I have|do I get|are allowed|are included]?",
            "What is the [number|maximum number] of {np}?",
            "Tell me the number of {np}.",
            "How many {np} do you allow?",
            "How many {np} can I have?",
        ),
        Split.HELD_OUT: (
            "How many {np} are possible?",
            "Can you tell me the number of {np}?",
            "How many {np} does a customer get?",
        ),
    },
    topics=(
        ("free cash withdrawals", "free withdrawals"),
        ("free transfers", "transfers without a fee"),
        ("PIN attempts", "wrong PIN attempts"),
        ("cards per account", "cards for one account"),
        ("sub-accounts", "extra accounts"),
        ("savings pockets", "savings goals"),
        ("standing orders", "regular payments"),
        ("free statements", "statements without a fee"),
        ("free withdrawals with the {card}", "free {card} withdrawals"),
        ("free transfers from the {account}", "free {account} transfers"),
    ),
    figure=lambda v, rng: v.number(2, 60),
)

_PLACES: Topics = (
    ("the {place} branch", "the {place} branch", "the branch in {place}"),
    ("the {place} branch", "the branch in {place}"),
    ("the {place} office", "the office in {place}"),
    ("the hotline", "the phone line", "the hotline"),
    ("the cash desk", "the cash counter"),
    ("the chat service", "the chat"),
    ("the advice centre", "the advice team"),
)

OPENING = Kind(
    lead="{Np}",
    cues=("open", "opens", "opening", "start", "from when", "begin", "in the morning", "how early", "opened"),
    states={
        Split.TRAIN: (
            "{Np} opens at {fig}.",
            "{Np} is open from {fig} to {fig2}.",
            "{Np} opens at {fig} and closes at {fig2}.",
            "{Np} is open between {fig} and {fig2}.",
            "{Np}: {fig} to {fig2}.",
            "[Every day|On weekdays|As a rule] {np} is open from {fig} to {fig2}.",
            "{Np} opens its doors at {fig}.",
            "{Np} can be visited from {fig} to {fig2}.",
        ),
        Split.HELD_OUT: (
            "{Np} unlocks its doors at {fig}.",
            "{Np} welcomes you from {fig} to {fig2}.",
        ),
    },
    asks={
        Split.TRAIN: (
            "When does {np} open?",
            "[What time|At what time] does {np} open?",
            "From when is {np} open?",
            "What is the opening time of {np}?",
            "How early [does {np} open|is {np} open]?",
            "When can I come to {np} in the morning?",
        ),
        Split.HELD_OUT: (
            "Can you tell me when {np} opens?",
            "From what time is {np} open?",
            "At which hour does {np} open?",
        ),
    },
    topics=_PLACES,
    figure=lambda v, rng: v.clock(6, 11),
)

CLOSING = Kind(
    lead="{Np}",
    cues=("close", "closes", "closing", "shut", "until when", "end", "in the evening", "how late", "closed"),
    states={
        Split.TRAIN: (
            "{Np} closes at {fig}.",
            "{Np} is open from {fig2} to {fig}.",
            "{Np} opens at {fig2} and closes at {fig}.",
            "{Np} is open between {fig2} and {fig}.",
            "{Np}: {fig2} to {fig}.",
            "[Every day|On weekdays|As a rule] {np} is open until {fig}.",
            "{Np} shuts at {fig}.",
            "{Np} can be visited from {fig2} to {fig}.",
        ),
        Split.HELD_OUT: (
            "{Np} locks its doors at {fig}.",
            "{Np} welcomes you from {fig2} to {fig}.",
        ),
    },
    asks={
        Split.TRAIN: (
            "When does {np} close?",
            "[What time|At what time] does {np} close?",
            "Until when is {np} open?",
            "What is the closing time of {np}?",
            "How late is {np} open?",
            "How long is {np} open in the evening?",
        ),
        Split.HELD_OUT: (
            "Can you tell me when {np} closes?",
            "Until what time is {np} open?",
            "At which hour does {np} close?",
        ),
    },
    topics=_PLACES,
    figure=lambda v, rng: v.clock(12, 22),
)
