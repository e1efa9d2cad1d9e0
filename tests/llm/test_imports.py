"""`import airi` is light, and what it exports is what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import airi
from airi.bench.shapes import Shape, make_checkpoint

SERVER_ONLY = ("starlette", "uvicorn", "uvloop", "httptools", "prometheus_client", "aiohttp")


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


def test_llm_generates_without_anything_of_the_server(tmp_path: Path) -> None:
    make_checkpoint(
        Shape(hidden=64, inner=64, layers=1, heads=2, kv_heads=1, head_dim=32, vocab=300), tmp_path
    )
    code = f"""
import sys
for name in {(*SERVER_ONLY, "zmq", "triton", "transformers")!r}:
    sys.modules[name] = None  # an import of it raises ImportError
from airi import LLM, SamplingParams
with LLM({str(tmp_path)!r}, kv_memory=8 << 20, threads=1) as llm:
    (output,) = llm.generate("hello", SamplingParams(max_tokens=3, ignore_eos=True))
print(len(output.outputs[0].token_ids))
"""
    assert run(code).strip() == "3"
