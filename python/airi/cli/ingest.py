"""`airi ingest`: files into a collection."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airi.cli._collections import CONFIG, CollectionArgument, ConfigFlag, KeyFlag, UrlFlag
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.retrieval.ingest import Chunker, Failure, Found, Report, Shelf

__all__ = ["ingest"]


def ingest(
    collection: CollectionArgument,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Files and folders: text, Markdown, HTML, PDF, JSON lines; left out: the collection's `sources`.",
        ),
    ] = None,
    *,
    config: ConfigFlag = CONFIG,
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Pattern of files in folders; may be repeated.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Pattern of what is left out; may be repeated.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what came from files not among these.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Bring a served collection up to date with files: read and cut here, embedded and kept by the server.

    Again, only what has changed is done. A file that cannot be read is one line, the others go on, and
    the exit code is 1.
    """
    from airi.cli._collections import ServedShelf, chunker_of, find_collection, server_of
    from airi.config import load
    from airi.retrieval.ingest import find_files

    file = load(config)
    found = find_collection(file, collection)
    paths = paths or [file.resolve(each) for each in found.sources]
    if not paths:
        raise ConfigError(
            f"collection {collection} has no sources in {config}; name files or folders", field="sources"
        )
    chunker = chunker_of(file, found)
    # Whatever folder this is run from, a file is the same source.
    files = list(find_files(paths, include=include or (), ignore=ignore or (), root=file.folder))
    with closing(server_of(file, url, api_key)) as server:
        report = _brought(ServedShelf(server, collection), files, chunker, prune=prune)
    for failure in report.failures:
        typer.echo(f"airi: {failure}", err=True)
    _show(report, as_json=json)
    raise typer.Exit(report.exit_code)


def _brought(shelf: Shelf, files: Sequence[Found | Failure], chunker: Chunker, *, prune: bool) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from airi.retrieval.ingest import ingest

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(files))

        def on_file(source: str, _: Report) -> None:
            bar.update(task, advance=1, description=source)

        return ingest(files, shelf, chunker, prune=prune, on_file=on_file)


def _show(report: Report, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        figures = {**asdict(report), "failures": [str(failure) for failure in report.failures]}
        typer.echo(msgspec.json.encode(figures).decode())
        return
    typer.echo(
        f"{report.files} files, {report.documents} documents: {report.added} chunks added, {report.moved} moved, "
        f"{report.kept} kept, {report.removed} removed; {len(report.failures)} could not be read"
    )
