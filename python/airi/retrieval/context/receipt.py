"""What became of every hit, and of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Outcome", "Receipt", "ReceiptLine"]

Outcome = Literal["used", "duplicate", "near_duplicate", "budget", "score", "policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptLine:
    """One hit."""

    id: str
    source: str
    score: float
    outcome: Outcome
    detail: str = ""
    """Why it was dropped, in words."""
    tokens: int | None = None
    """Of the hit as a document of its own; None where it was dropped before anybody counted."""
    number: int | None = None
    """What it is cited by, where it was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Where a window went. `window` == `prompt_tokens` + `reserved_output` + `left`."""

    window: int
    reserved_output: int
    prompt_tokens: int
    """Of the whole prompt, as the model's template and tokenizer make it."""
    plain_tokens: int
    """Of the prompt without documents: system, history and question."""
    left: int
    value: float
    """The scores of what was used, from the lowest one where that is negative."""
    bound: float
    """No choice of hits has a higher value in as many tokens: the bound of the knapsack with parts of hits."""
    hits: tuple[ReceiptLine, ...]
    """Every hit, the best one first."""

    @property
    def document_tokens(self) -> int:
        """What the documents take."""
        return self.prompt_tokens - self.plain_tokens

    @property
    def used(self) -> tuple[ReceiptLine, ...]:
        """Those that the prompt has."""
        return tuple(line for line in self.hits if line.outcome == "used")

    @property
    def dropped(self) -> tuple[ReceiptLine, ...]:
        """Those that it has not."""
        return tuple(line for line in self.hits if line.outcome != "used")
