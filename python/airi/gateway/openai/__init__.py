"""The OpenAI API: schemas, chat, completions, tokens."""

from __future__ import annotations
