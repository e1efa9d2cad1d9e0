"""Makes the repository's tools importable and names the built-in checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The folder of the built-in model."""
    return ROOT / "python" / "airi" / "builtin" / "airi-demo"
