"""The built-in model's tokenizer, and one whose template is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from airi import builtin
from airi.text import Tokenizer

FOLDER = Path(str(builtin.__file__)).parent / "airi-demo"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)
