"""The folders that models are fetched into: whole or not there, whoever is killed or comes twice."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["arriving", "cache_folder"]


def cache_folder(kind: str, name: str) -> Path:
    """Where a model of this name is kept: below AIRI_CACHE, else XDG_CACHE_HOME/airi, else ~/.cache/airi."""
    root = os.environ.get("AIRI_CACHE")
    if not root:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airi")
    return Path(root).expanduser() / kind / name


@contextmanager
def arriving(folder: Path) -> Iterator[Path]:
    """A folder to fetch into, which takes its place once the block is left well. Of two, the first stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
