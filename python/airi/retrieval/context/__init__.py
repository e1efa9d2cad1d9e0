"""The prompt of a question and what was found for it: chosen by tokens, in an order that prefix caches know, cited."""

from __future__ import annotations

from airi.retrieval.context.building import ChatTokenizer, Context, ContextOptions, build_context
from airi.retrieval.context.citations import Citation, Cited, Mention
from airi.retrieval.context.hits import ContextHit
from airi.retrieval.context.ordering import PromptMemory
from airi.retrieval.context.receipt import Receipt, ReceiptLine

__all__ = [
    "ChatTokenizer",
    "Citation",
    "Cited",
    "Context",
    "ContextHit",
    "ContextOptions",
    "Mention",
    "PromptMemory",
    "Receipt",
    "ReceiptLine",
    "build_context",
]
