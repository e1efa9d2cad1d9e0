"""Progress bars on stderr: a model that loads, completions that end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from airi.llm._results import Chunk

__all__ = ["count_completions", "show_loading"]

_LoadProgress = Callable[[str, str, float, float], None]


def _wanted(*, progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


@contextmanager
def show_loading(*, progress: bool | None) -> Iterator[_LoadProgress | None]:
    """A callback for the engine that draws a bar per stage of loading, None where nothing is shown."""
    if not _wanted(progress=progress):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def advance(model: str, stage: str, done: float, total: float) -> None:
            key = (model, stage)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{model}: {stage}", total=total)
            bars.update(tasks[key], completed=done, total=total)

        yield advance


@contextmanager
def count_completions(total: int, *, progress: bool | None) -> Iterator[Callable[[Sequence[Chunk]], None]]:
    """A function that takes the chunks of each step and moves a bar of completions, with the speed beside it."""
    if not _wanted(progress=progress):
        yield lambda chunks: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, speed="")
        tokens = 0

        def advance(chunks: Sequence[Chunk]) -> None:
            nonlocal tokens
            tokens += sum(len(chunk.token_ids) for chunk in chunks)
            ended = sum(chunk.finish_reason is not None for chunk in chunks)
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = f"{tokens / elapsed:,.0f} tokens/s" if elapsed > 0 else ""
            bar.update(task, advance=ended, speed=speed)

        yield advance
