"""Text: tokenise, detokenise as tokens arrive, stop strings, chat templates, and how to sample unless told.

The gateway and `airi.LLM` share this package; it knows neither HTTP nor models.
"""

from __future__ import annotations

from airi.text._detokenizer import ByteDetokenizer, Detokenizer
from airi.text._files import has_chat_template, tokenizer_sha256
from airi.text._messages import TemplateError
from airi.text._pieces import Pieces
from airi.text._reader import TextReader
from airi.text._recommended import recommended_sampling
from airi.text._stops import StopChecker, StopMatch
from airi.text._stream import TextStream
from airi.text._template import ChatTemplate
from airi.text._tokenizer import Tokenizer

__all__ = [
    "ByteDetokenizer",
    "ChatTemplate",
    "Detokenizer",
    "Pieces",
    "StopChecker",
    "StopMatch",
    "TemplateError",
    "TextReader",
    "TextStream",
    "Tokenizer",
    "has_chat_template",
    "recommended_sampling",
    "tokenizer_sha256",
]
