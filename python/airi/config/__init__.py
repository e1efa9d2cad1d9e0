"""`airi.yaml`: read, checked, locked, changed while running.

    file = load("airi.yaml")            # a ConfigFile, or a ConfigFileError with one line for each mistake
    file.config.tenants[0].weight
    diff(file, load("airi.yaml"))       # what a reload would change, and what it could not

Knows nothing of the gateway or the engine until `airi.config.options` is asked for theirs.
"""

from __future__ import annotations

from airi.config.load import ConfigFile, load, parse
from airi.config.mistakes import Mistake
from airi.config.schema import Config

__all__ = ["Config", "ConfigFile", "Mistake", "load", "parse"]
