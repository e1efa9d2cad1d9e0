"""Guardrails of a LiteLLM config that AIRI's content rules can do."""

from __future__ import annotations

import re
from typing import Any, Protocol

from airi.config.document import Document, Path

__all__ = ["content_rules"]

_ENTITIES = {
    "CREDIT_CARD": "payment_card",
    "IBAN_CODE": "iban",
    "US_SSN": "us_ssn",
    "EMAIL_ADDRESS": "email",
}
_ACTIONS = {"MASK": "redact", "BLOCK": "block"}
_SIDES = {"pre_call": "input", "during_call": "input", "post_call": "output"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")


class Translator(Protocol):
    """What takes keys of a LiteLLM config."""

    @property
    def document(self) -> Document: ...

    def take(self, *path: str | int) -> Any:
        """The value at a path, which counts as translated."""
        ...

    def lose(self, path: Path, why: str) -> None:
        """Says why something is not translated."""
        ...

    def bend(self, path: Path, how: str) -> None:
        """Says how something that is translated means another thing here."""
        ...


def content_rules(work: Translator) -> dict[str, list[dict[str, Any]]]:
    """`content` of the config: rules of input and output."""
    content: dict[str, list[dict[str, Any]]] = {}
    node = work.document.find(("guardrails",))
    for i in range(len(node.items or ()) if node is not None else 0):
        at: Path = ("guardrails", i)
        name, kind = work.take(*at, "guardrail_name"), work.take(*at, "litellm_params", "guardrail")
        default = work.take(*at, "litellm_params", "default_on")
        if default is False:
            work.lose(at, "it is off unless a request names it; a rule of AIRI applies to every call")
            continue
        sides = _sides(work.take(*at, "litellm_params", "mode"))
        patterns = _patterns(work, at, kind)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not sides or not patterns:
            work.lose(at, "a guardrail that is no list of patterns which AIRI has, or of another mode")
            continue
        if default is not True:
            how = "it applies to every call here, and did only where a request named it"
            work.bend((*at, "guardrail_name"), how)
        for side in sides:
            rules = content.setdefault(side, [])
            for action, detectors in patterns.items():
                own = name if len(patterns) == 1 else f"{name}-{action}"
                if all(rule["name"] != own for rule in rules):
                    rules.append({"name": own, "detectors": list(detectors), "action": action})
    return content


def _sides(mode: Any) -> list[str]:
    modes = mode if isinstance(mode, list) else [mode]
    if not all(isinstance(one, str) and one in _SIDES for one in modes):
        return []
    return sorted({_SIDES[one] for one in modes})


def _patterns(work: Translator, at: Path, kind: Any) -> dict[str, list[str]]:
    """Built-in patterns by what is to be done about them."""
    if kind == "hide-secrets":
        return {"redact": ["credentials"]}
    node = work.document.find((*at, "litellm_params", "pii_entities_config"))
    patterns: dict[str, list[str]] = {}
    for entity, child in node.children() if kind == "presidio" and node is not None else ():
        path = (*at, "litellm_params", "pii_entities_config", entity)
        ours, action = _ENTITIES.get(str(entity)), _ACTIONS.get(str(child.value))
        if ours is None or action is None:
            work.lose(path, "an entity that AIRI has no pattern for")
        else:
            work.take(*path)
            patterns.setdefault(action, []).append(ours)
    return patterns
