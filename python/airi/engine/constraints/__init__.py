"""What texts must be and must not: grammars, forbidden texts, and the tokens that they leave."""

from __future__ import annotations

from airi.engine.constraints.compiler import ConstraintCompiler
from airi.engine.constraints.constraint import Constraint
from airi.engine.constraints.forbidden import ForbiddenTexts, ForbiddenWalk, MaskedModel, Shown
from airi.engine.constraints.masks import MaskFiller, mask_words
from airi.engine.constraints.rules import TokenRules
from airi.engine.constraints.threads import RuleThreads

__all__ = [
    "Constraint",
    "ConstraintCompiler",
    "ForbiddenTexts",
    "ForbiddenWalk",
    "MaskFiller",
    "MaskedModel",
    "RuleThreads",
    "Shown",
    "TokenRules",
    "mask_words",
]
