"""Policy figures that are sums of money or rates: fees, limits, interest."""

from __future__ import annotations

import random

from .policy_kind import AMOUNTS_TO, Kind
from .vocabulary import Split, Vocabulary


def _fee(v: Vocabulary, rng: random.Random) -> str:
    every = rng.choice(("", "", "", " per month", " a month", " a year", " per year"))
    return v.money(0.4, 90.0) + every


def _limit(v: Vocabulary, rng: random.Random) -> str:
    return v.money(50.0, 30_000.0) + rng.choice(
        ("", " per day", " a day", " per week", " per month", " a month")
    )


FEE = Kind(
    lead="The fee for {np}",
    cues=(
        "fee",
        "price",
        "cost",
        "costs",
        "charge",
        "how much",
        "pay",
        "expensive",
        "what does it cost",
        "charged",
        "paying",
        "the fee",
    ),
    states={
        Split.TRAIN: (
            "[The fee|The charge|The price|Our fee] for {np} " + AMOUNTS_TO + " {fig}.",
            "The [fee|price] of {np} " + AMOUNTS_TO + " {fig}.",
            "{Np} costs {fig}.",
            "{Np} [requires|is worth|takes|means|calls for|sells at|goes for|is yours for] {fig}.",
            "{Np} costs [customers|you|our clients|people|everyone] {fig}.",
            "{Np} [is charged at|is priced at|comes at] {fig}.",
            "{Np}: {fig}.",
            "[At present|For all customers|In every branch] the fee for {np} is {fig}.",
            "{Np} will cost you {fig}.",
            "The cost of {np} is {fig}.",
            "From today the fee for {np} is fixed at {fig}.",
            "{Np} comes with a fee of {fig}.",
        ),
        Split.HELD_OUT: (
            "{Np} will be billed at {fig}.",
            "The tariff for {np} reads {fig}.",
            "Our price list puts {np} at {fig}.",
            "The bank's fee for {np} lies at {fig}.",
        ),
    },
    asks={
        Split.TRAIN: (
            "What is the [fee|charge|price|cost] for {np}?",
            "How much does {np} cost?",
            "How much is {np}?",
            "What do [you charge|I pay|customers pay] for {np}?",
            "What does {np} cost?",
            "How much do I [have to pay|pay] for {np}?",
            "[Can|Could] you tell me the fee for {np}?",
            "I need {np}. What [will it cost|is the fee]?",
            "Is there a [fee|charge] for {np}?",
            "Tell me the [cost|price|fee] of {np}.",
            "What would {np} cost me?",
            "Is {np} expensive?",
            "How much money do you take for {np}?",
            "{Np}, how much?",
        ),
        Split.HELD_OUT: (
            "How expensive is {np}?",
            "What will you charge me for {np}?",
            "Please tell me how much {np} costs.",
            "What fee do you take for {np}?",
            "How much must I pay when I need {np}?",
        ),
    },
    topics=(
        ("a replacement card", "a new card", "replacing a card"),
        ("a withdrawal abroad", "cash from a machine abroad", "a cash withdrawal abroad"),
        ("a paper statement", "a printed statement", "a statement by post"),
        ("an express transfer", "an instant transfer", "a same-day transfer"),
        ("a payment reminder", "a late payment reminder", "a reminder letter"),
        ("a new PIN letter", "a new PIN", "a replacement PIN"),
        ("an international transfer", "a transfer abroad", "a transfer to another country"),
        ("a safe deposit box", "a safe box"),
        ("delivery by courier", "courier delivery", "sending a card by courier"),
        ("cashing a cheque", "a cheque"),
        ("an order by phone", "a phone order", "an order on the phone"),
        ("a returned payment", "a rejected payment"),
        ("a cash deposit at the counter", "depositing cash at the counter", "a deposit at the counter"),
        ("an extra card", "a second card", "an additional card"),
        ("the {account}", "the {account}", "having the {account}"),
        ("the {card}", "the {card}", "having the {card}"),
    ),
    figure=_fee,
)

LIMIT = Kind(
    lead="The limit for {np}",
    cues=(
        "limit",
        "maximum",
        "most",
        "up to",
        "highest sum",
        "allowed",
        "how high",
        "limited",
        "the limit",
        "at most",
    ),
    states={
        Split.TRAIN: (
            "[The limit|The maximum|Our limit] for {np} " + AMOUNTS_TO + " {fig}.",
            "The [limit|maximum] for {np} " + AMOUNTS_TO + " {fig}.",
            "[At present|For all customers|In general] the limit for {np} is {fig}.",
            "{Np}: up to {fig}.",
            "{Np} are [limited to|possible up to|allowed up to|capped at] {fig}.",
            "{Np} are [open up to|held at|kept below|free up to] {fig}.",
            "The highest sum for {np} is {fig}.",
            "From today the limit for {np} is fixed at {fig}.",
            "{Np} must not exceed {fig}.",
        ),
        Split.HELD_OUT: (
            "The ceiling for {np} lies at {fig}.",
            "{Np} may not go beyond {fig}.",
            "Our limit for {np} begins at {fig}.",
        ),
    },
    asks={
        Split.TRAIN: (
            "What is the [limit|maximum] for {np}?",
            "How high is the [limit|maximum] for {np}?",
            "Is there a limit for {np}?",
            "Up to what amount are {np} possible?",
            "What limit applies to {np}?",
            "How much is allowed for {np}?",
            "Tell me the limit for {np}.",
            "What are {np} limited to?",
            "How much can I use for {np}?",
            "What is the most I can use for {np}?",
            "Which limit do you set for {np}?",
        ),
        Split.HELD_OUT: (
            "What is the most you allow for {np}?",
            "How high can {np} be?",
            "Could you tell me the maximum for {np}?",
            "What amount is possible for {np}?",
        ),
    },
    topics=(
        ("cash withdrawals", "withdrawals from cash machines", "withdrawals"),
        ("card payments", "payments by card", "payments with the card"),
        ("online payments", "payments on the internet", "internet payments"),
        ("contactless payments", "payments without a PIN"),
        ("transfers in the app", "app transfers", "transfers by phone app"),
        ("overdrafts", "the overdraft"),
        ("cash deposits", "deposits at the machine", "deposits"),
        ("international transfers", "transfers abroad"),
        ("instant transfers", "express transfers"),
        ("phone orders", "orders by phone"),
        ("payments with the {card}", "{card} payments"),
        ("withdrawals with the {card}", "{card} withdrawals"),
        ("transfers from the {account}", "{account} transfers"),
    ),
    figure=_limit,
)

RATE = Kind(
    lead="The rate for {np}",
    cues=(
        "rate",
        "interest",
        "percent",
        "percentage",
        "interest rate",
        "the rate",
        "how many percent",
        "yield",
    ),
    states={
        Split.TRAIN: (
            "The [rate|interest rate|interest] [for|on] {np} " + AMOUNTS_TO + " {fig}.",
            "[At present|For all customers|In general] the rate for {np} is {fig}.",
            "{Np} [has|earns|brings|yields|pays|bears|costs|gives] [a rate of|interest of|] {fig}.",
            "{Np}: {fig}.",
            "Interest on {np} " + AMOUNTS_TO + " {fig}.",
            "{Np} is offered at a rate of {fig}.",
            "The present rate of {np} is {fig}.",
            "From today the rate for {np} is fixed at {fig}.",
        ),
        Split.HELD_OUT: (
            "The going rate for {np} lies at {fig}.",
            "{Np} runs at {fig}.",
            "We put the rate for {np} at {fig}.",
        ),
    },
    asks={
        Split.TRAIN: (
            "What is the [interest rate|rate|interest] for {np}?",
            "How much interest is there on {np}?",
            "What rate applies to {np}?",
            "How high is the [rate|interest] for {np}?",
            "What percentage applies to {np}?",
            "Tell me the [rate|interest] for {np}.",
            "What interest [is there|do I get|do I pay|do you charge] on {np}?",
            "Which interest rate does {np} have?",
            "How many percent is it for {np}?",
        ),
        Split.HELD_OUT: (
            "Which rate do you apply to {np}?",
            "How much is the interest for {np}?",
            "Can you tell me the interest on {np}?",
            "At what rate is {np} offered?",
        ),
    },
    topics=(
        ("the {account}", "the {account}"),
        ("an overdraft", "the overdraft", "overdrawing the account"),
        ("a car loan", "the car loan", "a loan for a car"),
        ("a home loan", "a mortgage", "the home loan"),
        ("a personal loan", "the personal loan"),
        ("a payment in a foreign currency", "a foreign currency payment", "paying in a foreign currency"),
        ("a term deposit", "the term deposit", "a fixed deposit"),
        ("early repayment of a loan", "repaying a loan early"),
        ("a late instalment", "an instalment paid late"),
        ("the {word} loan", "the {word} loan"),
        ("the {word} deposit", "the {word} deposit"),
        ("the {card}", "debt on the {card}"),
    ),
    figure=lambda v, rng: v.percent(),
)
