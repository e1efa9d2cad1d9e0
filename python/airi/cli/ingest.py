"""`airi ingest`: files into a collection."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airi.cli._collections import (
    CollectionArgument,
    FolderFlag,
    KeyFlag,
    ServerEmbedder,
    UrlFlag,
    check_alike,
)
from airi.errors import AiriError

if TYPE_CHECKING:
    from airi._remote import OpenAIServer
    from airi.retrieval import Collection, EmbeddingSpace
    from airi.retrieval.ingest import Chunker, Failure, Found, Report

__all__ = ["ingest"]


def ingest(
    collection: CollectionArgument,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Files and folders: text, Markdown, HTML, PDF, JSON lines."),
    ],
    *,
    tokenizer: Annotated[Path, typer.Option(help="Folder with the embedder's tokenizer.json, which counts.")],
    folder: FolderFlag = Path("collections"),
    url: UrlFlag = "http://127.0.0.1:8000",
    api_key: KeyFlag = None,
    model: Annotated[
        str | None,
        typer.Option(help="The embedder; left out, that of the collection, or the server's first."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a chunk at most.")] = 256,
    overlap: Annotated[int, typer.Option(help="Tokens that a chunk repeats of the one before.")] = 0,
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
    """Bring a collection up to date with files: read, cut along their structure, embedded, kept.

    Again, only what has changed is done. A file that cannot be read is one line, the others go on, and
    the exit code is 1.
    """
    from airi._remote import OpenAIServer
    from airi.retrieval import Collection
    from airi.retrieval.ingest import Chunker, EmbedderTokens, find_files

    chunker = Chunker(counter=EmbedderTokens.load(tokenizer), max_tokens=max_tokens, overlap_tokens=overlap)
    digest = _digest(tokenizer / "tokenizer.json")
    files = list(find_files(paths, include=include or (), ignore=ignore or ()))
    with closing(OpenAIServer(url, api_key)) as server, Collection.open(folder, collection) as opened:
        embedder = ServerEmbedder(server, _space(opened, server, model, digest, chunker))
        opened.attach(embedder)
        check_alike(opened, embedder, embedder.encode(["text"])[0])
        report = _brought(opened, files, chunker, prune=prune)
    for failure in report.failures:
        typer.echo(f"airi: {failure}", err=True)
    _show(report, as_json=json)
    raise typer.Exit(report.exit_code)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _space(
    collection: Collection, server: OpenAIServer, model: str | None, tokenizer: str, chunker: Chunker
) -> EmbeddingSpace:
    """The space that a server's vectors are of; AiriError where that is not the collection's."""
    from airi.retrieval import EmbeddingSpace

    active = collection.active
    model = model or (active.model if active is not None else server.first_model())
    dimension = len(server.embed(model, ["text"])[0])
    space = EmbeddingSpace(
        model=model, tokenizer=tokenizer, pooling="server", dimension=dimension, chunker=chunker.version
    )
    if active is not None and active.key != space.key:
        was, now = active.describe(), space.describe()
        name = next(name for name in was if was[name] != now[name])
        raise AiriError(
            f"collection {collection.name} has vectors of {name} {str(was[name])[:80]!r}, these would be of "
            f"{str(now[name])[:80]!r}: they cannot be compared"
        )
    return space


def _brought(
    collection: Collection, files: Sequence[Found | Failure], chunker: Chunker, *, prune: bool
) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from airi.retrieval import CollectionShelf
    from airi.retrieval.ingest import ingest

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(files))

        def on_file(source: str, _: Report) -> None:
            bar.update(task, advance=1, description=source)

        return ingest(files, CollectionShelf(collection), chunker, prune=prune, on_file=on_file)


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
