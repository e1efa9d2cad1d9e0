"""`airi bench serve` with a server that it starts itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

Airi = Callable[..., Any]

pytestmark = pytest.mark.slow  # about 10 seconds: two server processes with their engines


def test_a_server_is_started_measured_and_stopped(
    airi: Airi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = ("--requests", "4", "--input-len", "12", "--output-len", "6")
    before = psutil.Process().children(recursive=True)
    result = airi("bench", "serve", "--shape", "llama-2m", *sizes, "--json")
    assert result.code == 0, result.err
    row = json.loads(result.out)
    assert (row["model"], row["completed"], row["failed"]) == ("llama-2m", 4, 0)
    assert (row["prompt_tokens"], row["output_tokens"]) == (48, 24)
    assert psutil.Process().children(recursive=True) == before


def test_a_server_that_does_not_start_is_one_line(airi: Airi) -> None:
    result = airi("bench", "serve", "/nowhere/model")
    assert result.code == 2
    assert "the server ended with exit code" in result.err
    assert "/nowhere/model" in result.err
