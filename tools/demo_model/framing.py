"""What stands around a message or a policy text: instructions of the system, ways to ask, greetings."""

from __future__ import annotations

from .vocabulary import Split

INTENT_SYSTEMS = {
    Split.TRAIN: (
        "[Name|Give|State|Tell] the intent of [each|the|every] [customer |]message with a confidence.",
        "You [classify|label] customer messages. [Answer|Reply] with the intent and a confidence.",
        "[Classify|Label] the [intent of the|] [customer |]message.",
        "You are an intent classifier for {bank}.",
        "Intent classification. Reply with intent and confidence.",
        "What is the intent of the customer?",
    ),
    Split.HELD_OUT: (
        "Name the customer's intent and your confidence.",
        "Reply with the intent of each message from customers of {bank}.",
    ),
}
INTENT_ASKS = {
    Split.TRAIN: (
        "[What is|Name|Give me|Tell me] the intent of this message[ and a confidence|]: {message}",
        "[Intent|intent|Intent?|Classify|classify|Label]: {message}",
        'What is the [customer\'s |]intent? "{message}"',
        '[Classify|Label] [this message|this|the following message]: "{message}"',
        "Message: {message}\n[Intent?|What is the intent?|Intent:]",
        "{message}\n\n[What is the intent of this message?|Which intent is this?|Name the intent.]",
        'A customer writes: "{message}" What is the intent?',
        "Which intent does this message have? {message}",
        '[What is|Name|Tell me] the intent of[:|] ["{message}"|{message}]',
    ),
    Split.HELD_OUT: (
        'Please name the intent of "{message}"',
        "Here is a customer message: {message}\nWhich intent does it have?",
    ),
}
INTENT_CUES = ("[intent|Intent|the intent|its intent|which intent]", "[classify|Classify|label|Label]")
POLICY_SYSTEMS = {
    Split.TRAIN: (
        "You are the assistant of {bank}. Answer from [these paragraphs|this text|this policy].\n\n{text}",
        "[Answer|Reply to] [the customer|the question] from [this policy|these paragraphs|the text below]:\n{text}",
        "Policy of {bank}:\n{text}",
        "{text}",
        "Use only this text.\n\n{text}",
    ),
    Split.HELD_OUT: (
        "You help customers of {bank}. Use only these paragraphs:\n\n{text}",
        "Reply from the policy below.\n{text}",
    ),
}
POLICY_ASKS = {
    Split.TRAIN: (
        "{text}\n\n{question}",
        "{text}\n{question}",
        "[Policy|Text|Paragraphs|Context|Here is the policy|Our terms]:\n{text}\n\n[Question: |]{question}",
        "[Here is our policy.|This is the text.|Use this text.|Read this:] {text} {question}",
        "{question}\n\n{text}",
        "{question} [Here is the text:|This is the policy:|Look here:] {text}",
        '"{text}" {question}',
        "Question: {question}\nText: {text}",
        "{text} {question}",
    ),
    Split.HELD_OUT: (
        "Please answer from this policy.\n{text}\n\nMy question: {question}",
        "The terms say: {text} {question}",
        "{question} These are the terms: {text}",
    ),
}
CHAT_SYSTEMS = {
    Split.TRAIN: (
        "You are the [assistant|chat assistant|friendly assistant|helper] of {bank}.",
        "You [work for|help customers of|talk to customers of] {bank}.",
        "{bank} customer service.",
    ),
    Split.HELD_OUT: ("You are a helpful assistant at {bank}.",),
}
GREETINGS = {
    Split.TRAIN: ("[Hello|Hi|Hey|Good morning|Good evening], ", "[Hello|Hi|Hey]! ", "[hello|hi|hey] "),
    Split.HELD_OUT: ("Hi there, ", "Hello there! ", "Good day. "),
}
READ_BACK_ASKS = (
    "[Repeat|Read back|Say again|Copy]: {items}",
    "[Please repeat|Please read back|Repeat after me]: {items}",
    "{items}\n[Repeat this.|Read that back.|Say it again.]",
)
PLAIN_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Be brief.",
    "Answer briefly and politely.",
)
