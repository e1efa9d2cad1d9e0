"""Versions of models, releases that hold them together, and rollouts from one release to the next.

Knows neither HTTP nor engines: what is loaded and where traffic goes is done by those who read its decisions.
"""

from __future__ import annotations

from airi.lifecycle.draw import Split
from airi.lifecycle.registry import Facts, Registry, Version
from airi.lifecycle.releases import Release, ReleaseBook, misfits
from airi.lifecycle.states import MOVES, VersionState

__all__ = [
    "MOVES",
    "Facts",
    "Registry",
    "Release",
    "ReleaseBook",
    "Split",
    "Version",
    "VersionState",
    "misfits",
]
