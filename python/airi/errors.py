"""The exceptions of AIRI, one tree.

AiriError
├── ConfigError        a setting or a model's config.json that cannot be used
└── CheckpointError    a checkpoint folder that is missing, truncated or does not fit its config
"""

from __future__ import annotations


class AiriError(Exception):
    """The root: everything AIRI raises on purpose. Its text is one line for the user."""


class ConfigError(AiriError):
    """Raised when an option or a config.json field has a value that is not supported; names it and what is accepted."""


class CheckpointError(AiriError):
    """Raised when a checkpoint's files are missing, damaged or do not fit its config; names the file or tensor."""
