"""Texts of a given form: grammars, the tokens that they allow, and requests that wait for theirs."""

from __future__ import annotations

from airi.engine.constraints.compiler import ConstraintCompiler
from airi.engine.constraints.constraint import Constraint
from airi.engine.constraints.masks import MaskFiller, mask_words

__all__ = ["Constraint", "ConstraintCompiler", "MaskFiller", "mask_words"]
