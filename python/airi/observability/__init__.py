"""What an engine did and why, in words."""

from __future__ import annotations

from airi.observability.explain import explain, sentence

__all__ = ["explain", "sentence"]
