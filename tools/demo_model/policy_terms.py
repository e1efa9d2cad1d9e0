"""Policy figures that are not money: durations, numbers of things, opening hours."""

from __future__ import annotations

import random

from .policy_kind import Kind, Topics
from .vocabulary import Split, Vocabulary


def _duration(v: Vocabulary, rng: random.Random) -> str:
    unit = rng.choice(
        ("working days", "working days", "days", "hours", "weeks", "minutes", "business days", "months")
    )
    if rng.random() < 0.15:
        return f"{v.number(2, 9)} to {v.number(10, 20)} {unit}"
    return f"{v.number(2, 60)} {unit}"


DURATION = Kind(
    answer="The time for {np} is {fig}.",
    missing="the time for {np}",
    states={
        Split.TRAIN: (
            "{Np} takes {fig}.",
            "{Np} is [done|completed|finished] within {fig}.",
            "[Please allow|Allow] {fig} for {np}.",
            "We need {fig} for {np}.",
            "{Np} [may take|can take|takes] up to {fig}.",
            "The time for {np} is {fig}.",
            "[Usually|As a rule|In general], {np} takes {fig}.",
            "For {np}, [plan|expect|allow] {fig}.",
            "{Np} needs {fig}.",
            "Expect {fig} for {np}.",
            "After {fig}, {np} is [done|completed].",
            "{Np}: {fig}.",
        ),
        Split.HELD_OUT: (
            "You should plan {fig} for {np}.",
            "{Np} will be completed in {fig}.",
            "Our team takes {fig} for {np}.",
            "{Np} normally needs {fig}.",
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
    answer="The number of {np} is {fig}.",
    missing="the number of {np}",
    states={
        Split.TRAIN: (
            "The number of {np} is {fig}.",
            "We allow {fig} {np}.",
            "[Customers have|You have|You get|Each customer gets] {fig} {np}.",
            "{fig} {np} are included.",
            "There are {fig} {np}.",
            "Up to {fig} {np} are [possible|allowed].",
            "{Np}: {fig}.",
            "The maximum number of {np} is {fig}.",
        ),
        Split.HELD_OUT: (
            "Our customers get {fig} {np}.",
            "{fig} {np} are possible.",
            "The number of {np} is set at {fig}.",
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
    answer="The opening time of {np} is {fig}.",
    missing="the opening time of {np}",
    states={
        Split.TRAIN: (
            "{Np} opens at {fig}.",
            "{Np} is open from {fig} to {fig2}.",
            "{Np} opens at {fig} and closes at {fig2}.",
            "From {fig} to {fig2}, {np} is [open|there for you].",
            "{Np} is open between {fig} and {fig2}.",
            "{Np} starts at {fig}.",
            "{Np}: {fig} to {fig2}.",
            "Opening hours of {np}: {fig} to {fig2}.",
        ),
        Split.HELD_OUT: (
            "The hours of {np} are {fig} to {fig2}.",
            "{Np} opens its doors at {fig}.",
            "You can visit {np} from {fig} to {fig2}.",
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
    answer="The closing time of {np} is {fig}.",
    missing="the closing time of {np}",
    states={
        Split.TRAIN: (
            "{Np} closes at {fig}.",
            "{Np} is open from {fig2} to {fig}.",
            "{Np} opens at {fig2} and closes at {fig}.",
            "From {fig2} to {fig}, {np} is [open|there for you].",
            "{Np} is open between {fig2} and {fig}.",
            "{Np} is open until {fig}.",
            "{Np}: {fig2} to {fig}.",
            "Opening hours of {np}: {fig2} to {fig}.",
        ),
        Split.HELD_OUT: (
            "The hours of {np} are {fig2} to {fig}.",
            "{Np} shuts at {fig}.",
            "You can visit {np} from {fig2} to {fig}.",
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
