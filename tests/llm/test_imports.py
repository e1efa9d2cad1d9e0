"""`import airi` is light, and what it exports is what it says."""

from __future__ import annotations

import subprocess
import sys

import pytest

import airi

SERVER_ONLY = ("starlette", "uvicorn", "uvloop", "httptools", "prometheus_client")


def run(code: str) -> str:
    """What a fresh interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert airi.__all__ == sorted(airi.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    for name in airi.__all__:
        assert getattr(airi, name) is not None
    assert set(airi.__all__) <= set(dir(airi))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = airi.nothing


def test_import_airi_imports_nothing_heavy() -> None:
    heavy = (
        "torch",
        "triton",
        "zmq",
        "numpy",
        "tokenizers",
        "jinja2",
        "msgspec",
        "rich",
        "typer",
        *SERVER_ONLY,
    )
    code = f"import sys, airi; print([m for m in {heavy!r} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_llm_needs_nothing_of_the_server() -> None:
    code = f"""
import sys
for name in {(*SERVER_ONLY, "zmq")!r}:
    sys.modules[name] = None  # an import of it raises ImportError
import airi.llm, airi.text, airi.builtin
from airi import LLM, SamplingParams, Tokenizer
from airi.engine import Engine
print("fine")
"""
    assert run(code).strip() == "fine"
