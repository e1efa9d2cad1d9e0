"""Who may, how much, what content. Nothing of the gateway and nothing heavy is imported from here."""

from __future__ import annotations

from airi.policy.principal import ANYONE, Principal

__all__ = ["ANYONE", "Principal"]
