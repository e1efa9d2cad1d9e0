"""What some tests need and a machine may lack."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def needs(module: str, package: str) -> Any:
    """The module. Without it a test is skipped; where `CI` is set nothing may be missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        message = f"{module} is not installed ({package})"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
