"""Gateways and choices under content rules, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airi.config import ConfigFile, parse
from airi.config.content import ContentPart
from airi.gateway.gate import Government
from airi.gateway.generation import Generation
from airi.gateway.governing import decider_of
from airi.gateway.http import CallRecord
from airi.policy.audit import AuditLog

from .conftest import Govern

MODEL = {"name": "tiny", "source": "s", "aliases": ["tiny-alias"]}
CARD = "4111 1111 1111 1111"
BLOCK_CARDS = {"name": "no-cards", "detectors": ["payment_card"], "action": "block"}
REDACT_MAIL = {"name": "mail", "detectors": ["email"], "action": "redact", "replacement": "<mail>"}
TELL_BIRDS = {"name": "birds", "words": ["heron", "owl"], "action": "annotate"}
AUDIT_NUMBERS = {"name": "numbers", "regexes": [r"\d+"], "action": "audit"}
REDACT_SIGNS = {"name": "signs", "regexes": ["🙂|中"], "action": "redact"}
ALL = [BLOCK_CARDS, REDACT_MAIL, TELL_BIRDS, AUDIT_NUMBERS, REDACT_SIGNS]


def content_config(**content: list[dict[str, Any]]) -> ConfigFile:
    """A config with these rules."""
    document = {"version": 1, "models": [MODEL], "content": content}
    return parse(json.dumps(document, ensure_ascii=False))


async def uncounted(_: CallRecord, __: Generation) -> None:
    """How a judge is asked where nothing is limited."""


def content_part(**content: list[dict[str, Any]]) -> ContentPart:
    """The rules of a config that has them by side."""
    return ContentPart(content_config(**content))


def ruled(audit: Path | None = None, **content: list[dict[str, Any]]) -> Govern:
    """Everybody under these rules."""

    async def govern() -> Government:
        log = None if audit is None else AuditLog(audit)
        return Government(decider_of(None, ("tiny",)), audit=log, content=content_part(**content))

    return govern
