"""`airi lock`: fixes what a config's models are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

__all__ = ["ReadingBars", "lock"]


def lock(
    file: Annotated[Path, typer.Argument(help="The config.")] = Path("airi.yaml"),
) -> None:
    """Write airi.lock beside a config: commits of repositories, digests of folders.

    `airi serve` then serves these and nothing else, until the lock is made again or removed.
    """
    from airi.config import load
    from airi.config.lock import resolve, write_lock

    config = load(file)
    with ReadingBars() as bars:
        locked = resolve(config, bars.show)
    path = write_lock(config, locked)
    for name, entry in sorted(locked.items()):
        what = f"commit {entry.commit}" if entry.commit is not None else f"sha256 {entry.sha256}"
        typer.echo(f"{name}: {what}")
    typer.echo(f"wrote {path}")


class ReadingBars:
    """How far folders have been read, on a terminal's stderr."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ReadingBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, model: str, done: int, total: int) -> None:
        """As `airi.config.lock.Progress`."""
        if model not in self._tasks:
            self._tasks[model] = self._bars.add_task(f"{model}: reading", total=total)
        self._bars.update(self._tasks[model], completed=done, total=total)
