"""`airi search`: what a collection has for a question."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airi.cli._collections import (
    CollectionArgument,
    FolderFlag,
    KeyFlag,
    ServerEmbedder,
    UrlFlag,
    check_alike,
)
from airi.errors import AiriError, RequestError

if TYPE_CHECKING:
    from airi.retrieval import Hit

__all__ = ["search"]

_SHOWN = 300


def search(
    collection: CollectionArgument,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question, or words.")],
    *,
    folder: FolderFlag = Path("collections"),
    url: UrlFlag = "http://127.0.0.1:8000",
    api_key: KeyFlag = None,
    k: Annotated[int, typer.Option("-k", help="Rows at most.")] = 5,
    filter: Annotated[str | None, typer.Option(help='Of metadata: \'{"lang": "de"}\'.')] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for each row.")] = False,
) -> None:
    """Show the rows of a collection that fit a question best, by likeness and by words."""
    from airi._remote import OpenAIServer
    from airi.retrieval import Collection, Retriever, SearchOptions

    if not (folder / f"{collection}.db").is_file():
        raise AiriError(f"there is no collection {collection} in {folder}; `airi ingest` makes it")
    wanted = _filter(filter)
    with closing(OpenAIServer(url, api_key)) as server, Collection.open(folder, collection) as opened:
        if opened.active is None:
            raise AiriError(f"collection {collection} has no vectors; `airi ingest` makes them")
        embedder = ServerEmbedder(server, opened.active)
        hits = Retriever(opened, embedder, search=SearchOptions(k=k)).search(query, filter=wanted)
        check_alike(opened, embedder, embedder.encode([query])[0])
    for number, hit in enumerate(hits, 1):
        _show(number, hit, as_json=json)


def _filter(written: str | None) -> dict[str, Any] | None:
    import msgspec

    if written is None:
        return None
    try:
        return msgspec.json.decode(written, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise RequestError(f"filter is no JSON object: {error}", field="filter") from None


def _show(number: int, hit: Hit, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        fields = {name: getattr(hit, name) for name in ("id", "score", "source", "time", "text", "metadata")}
        typer.echo(msgspec.json.encode(fields).decode())
        return
    text = " ".join(hit.text.split())
    typer.echo(f"{number}. {hit.source or hit.id} ({hit.score:.3f})")
    typer.echo(f"   {text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}")
