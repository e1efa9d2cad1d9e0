"""The Messages API of Anthropic: schemas, messages, counts of tokens."""

from __future__ import annotations
