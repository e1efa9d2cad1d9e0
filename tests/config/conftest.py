"""Configs from texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from airi.config import ConfigFile, load, parse
from airi.errors import ConfigFileError

CANARY = "canary0swordfish"
"""A secret that nothing may tell."""
MINIMAL = "version: 1\nmodels:\n  - {name: demo, source: airi-demo}\n"


def config(text: str, environ: Mapping[str, str] | None = None, path: str = "airi.yaml") -> ConfigFile:
    """The config in a text, indented as the test likes it."""
    return parse(dedent(text), path, environ or {})


def lines(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """The lines of what is wrong with a text, without the file's name."""
    with pytest.raises(ConfigFileError) as caught:
        config(text, environ)
    assert all(line.startswith("airi.yaml:") and "\n" not in line for line in caught.value.lines)
    return [line.removeprefix("airi.yaml:") for line in caught.value.lines]


def with_demo(text: str) -> str:
    """A minimal config with more below it."""
    return MINIMAL + dedent(text)


def write(folder: Path, text: str, name: str = "airi.yaml") -> ConfigFile:
    """The config in a file of a folder."""
    path = folder / name
    path.write_text(dedent(text))
    return load(path, {})
