"""`airi check`: everything that can be told about a config before it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["check"]


def check(
    file: Annotated[Path, typer.Argument(help="The config.")] = Path("airi.yaml"),
) -> None:
    """Check a config: its keys, what its parts say of each other, its files, its policies, and the memory.

    Every mistake is one line on stderr, `FILE:LINE: key is VALUE; accepted: ...`; status 2 then.
    """
    from airi.config import load
    from airi.config.check import check as check_file

    report = check_file(load(file))
    typer.echo(f"{file}: {report.summary}")
    for note in report.notes:
        typer.echo(f"  {note}")
